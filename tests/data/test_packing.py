"""Packing: nothing is lost, and next to nothing is wasted."""

from itertools import count, islice, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoder_foundry.data.packing import cut, drop_remainder, pack

CLS, SEP = 1, 2


def numbered_documents(lengths):
    """Documents of these lengths in which every token of the whole corpus is a different number, from 10 upwards."""
    ends = np.cumsum([10, *lengths])
    return [np.arange(start, end, dtype=np.uint32) for start, end in pairwise(ends)]


@given(
    lengths=st.lists(st.integers(0, 60), max_size=60),
    row_length=st.integers(3, 40),
    buffer=st.integers(1, 20),
)
def test_no_token_is_lost_reordered_or_shared_between_documents(lengths, row_length, buffer):
    documents = numbered_documents(lengths)
    rows = list(pack(cut(documents, row_length, CLS, SEP), row_length, buffer))
    assert all(0 < sum(map(len, row)) <= row_length for row in rows)

    pieces = [piece for row in rows for piece in row]
    assert all(piece[0] == CLS and piece[-1] == SEP for piece in pieces)
    contents = sorted((piece[1:-1] for piece in pieces), key=lambda content: content[0])
    expected = [
        document[start : start + row_length - 2]
        for document in documents
        for start in range(0, len(document), row_length - 2)
    ]
    assert len(contents) == len(expected)
    assert all(np.array_equal(content, wanted) for content, wanted in zip(contents, expected, strict=True))


@pytest.mark.parametrize("row_length", [512, 1024, 4096, 8192])
@pytest.mark.parametrize("median", [100, 600])
def test_a_thousand_documents_of_natural_lengths_fill_rows(row_length, median):
    generator = np.random.default_rng(0)
    lengths = np.maximum(generator.lognormal(np.log(median), 1.2, 3000).astype(int), 1)
    rows = list(pack(cut(numbered_documents(lengths), row_length, CLS, SEP), row_length))
    tokens = sum(len(document) for row in rows for document in row)
    needed = -(-tokens // row_length)
    assert len(rows) <= 1 + 1.001 * needed
    assert needed < 200 or tokens / (len(rows) * row_length) >= 0.995


def test_packing_streams():
    endless = (np.full(1 + n % 50, 7) for n in count())
    rows = list(islice(pack(endless, 100, buffer=64), 1000))
    assert sum(len(document) for row in rows for document in row) > 0.99 * 1000 * 100


def rows_with_tokens(*tokens):
    return [[np.zeros(number, dtype=int)] for number in tokens]


@pytest.mark.parametrize(
    ("rows", "kept"),
    [
        (rows_with_tokens(*[100] * 60, 20), 60),  # 98.7 % full with the last row
        (rows_with_tokens(*[100] * 60, 80), 61),  # 99.7 %
        (rows_with_tokens(*[100] * 40, 20), 41),  # too small a source to leave anything out
        (rows_with_tokens(*[90] * 60, 20), 61),  # it is not the last row's fault
        (rows_with_tokens(20), 1),
        ([], 0),
    ],
)
def test_a_last_row_is_given_up_only_where_it_alone_keeps_many_rows_under_99_percent(rows, kept):
    assert list(drop_remainder(rows, 100)) == rows[:kept]


def test_a_document_that_was_not_cut_is_refused():
    with pytest.raises(ValueError, match="does not fit a row"):
        list(pack([np.zeros(11, dtype=int)], row_length=10))
