"""Packing: nothing is lost, and next to nothing is wasted."""

import tracemalloc
from collections import defaultdict
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from rotary_foundry.data import packing
from rotary_foundry.data.packing import BUFFER, Packer, gives_up_last, whole_rows
from rotary_foundry.data.rows import Frame, Row, encode_row, token_dtype

CLS, SEP = 1, 2
FRAME = Frame((CLS,), (SEP,))


def numbered(lengths):
    """Documents in which every token of the whole corpus is a different id, from 10 upwards; every third number."""
    return np.arange(10, 10 + sum(lengths), dtype=np.uint32), np.array(lengths, int), 5 + 3 * np.arange(len(lengths))


def packed(lengths, row_length, stride=0, buffer=BUFFER, calls=(), frame=FRAME) -> list[Row]:
    """The rows of numbered documents, `calls` being where one call of `add` ends and the next one begins."""
    tokens, lengths, numbers = numbered(lengths)
    packer = Packer(row_length, frame, stride, buffer)
    parts = zip(
        np.split(tokens, np.cumsum([0, *lengths])[list(calls)]),
        np.split(lengths, calls),
        np.split(numbers, calls),
        strict=True,
    )
    return [row for part in parts for row in packer.add(*part)] + list(packer.finish())


def pieces_of(rows, frame=FRAME) -> dict[int, list[np.ndarray]]:
    """The content of each document's pieces, in the order in which they left."""
    pieces = defaultdict(list)
    for row in rows:
        for piece, number in zip(np.split(row.tokens, np.cumsum(row.lengths)[:-1]), row.documents, strict=True):
            assert len(piece) > frame.slots
            before, inner, after = np.split(piece, [len(frame.before), len(piece) - len(frame.after)])
            assert (*before,) == frame.before and (*after,) == frame.after
            pieces[int(number)].append(inner)
    return pieces


SMALL = {"lengths": st.lists(st.integers(0, 60), max_size=60), "row_length": st.integers(3, 40)}
FRAMES = {"frame": st.sampled_from([FRAME, Frame((), ()), Frame((CLS,), ()), Frame((CLS, 3), (SEP,))])}
BUFFERS = {"buffer": st.integers(1, 20), "buffer_tokens": st.integers(1, 300)}


@given(**SMALL, **BUFFERS, **FRAMES)
def test_no_token_is_lost_reordered_or_shared_between_documents(lengths, row_length, buffer, buffer_tokens, frame):
    row_length += max(0, frame.slots - FRAME.slots)
    with mock.patch.object(packing, "BUFFER_TOKENS", buffer_tokens):
        rows = packed(lengths, row_length, buffer=buffer, frame=frame)
    assert all(0 < len(row.tokens) == row.lengths.sum() <= row_length for row in rows)
    assert all(len(row.tokens) >= row_length - frame.slots for row in rows[:-1])
    tokens, lengths, numbers = numbered(lengths)
    documents = zip(numbers, np.split(tokens, np.cumsum(lengths)[:-1]) if len(lengths) else [], strict=True)
    joined = {number: np.concatenate(pieces).tolist() for number, pieces in pieces_of(rows, frame).items()}
    assert joined == {number: document.tolist() for number, document in documents if len(document)}


@given(**SMALL, **BUFFERS, share=st.floats(0, 0.99))
def test_with_a_stride_the_windows_of_a_document_overlap_by_it_and_only_they_do(
    lengths, row_length, buffer, buffer_tokens, share
):
    content = row_length - 2
    stride = int(share * content)
    with mock.patch.object(packing, "BUFFER_TOKENS", buffer_tokens):
        rows = packed(lengths, row_length, stride, buffer)
    assert all(len(row.tokens) == row.lengths.sum() <= row_length for row in rows)
    left = pieces_of(rows)
    tokens, lengths, numbers = numbered(lengths)
    for number, start, length in zip(numbers, np.cumsum(lengths) - lengths, lengths, strict=True):
        document = tokens[start : start + length].tolist()
        pieces = left.pop(number, [])
        while document:
            window = []
            while len(window) < min(content, len(document)):  # in one piece, or in some that fill rows
                window += pieces.pop(0).tolist()
            assert window == document[:content]
            document = document[content - stride :] if len(document) > content else []
        assert not pieces
    assert not left


@pytest.mark.parametrize("stride", range(10))
def test_a_stride_means_what_it_means_to_a_tokenizer(stride):
    words = {str(id_): id_ for id_ in range(100)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(10, stride=stride)
    for length in range(1, 60):
        encoding = tokenizer.encode(" ".join(map(str, range(10, 10 + length))))
        windows = [window.ids for window in (encoding, *encoding.overflowing)]
        assert [piece.tolist() for piece in pieces_of(packed([length], 12, stride))[5]] == windows


@given(**SMALL, **BUFFERS, stride=st.integers(0, 20), data=st.data())
def test_rows_do_not_depend_on_how_documents_are_handed_over(lengths, row_length, buffer, buffer_tokens, stride, data):
    calls = sorted(data.draw(st.lists(st.integers(0, len(lengths)), max_size=10)))
    stride = min(stride, row_length - 3)
    with mock.patch.object(packing, "BUFFER_TOKENS", buffer_tokens):
        at_once = packed(lengths, row_length, stride, buffer)
        in_parts = packed(lengths, row_length, stride, buffer, calls)
    parts = [[[part.tolist() for part in row[:3]] for row in rows] for rows in (in_parts, at_once)]
    assert parts[0] == parts[1]


GENERATOR = np.random.default_rng(0)
CORPORA = {
    "web": np.maximum(GENERATOR.lognormal(np.log(600), 1.2, 6000).astype(int), 1),
    "short web": np.maximum(GENERATOR.lognormal(np.log(100), 1.2, 6000).astype(int), 1),
    "books": np.maximum(GENERATOR.lognormal(np.log(8000), 1.0, 1001).astype(int), 1),
    "all of 600": np.full(6000, 600),
    "all of 300": np.full(6000, 300),
    "about 600": GENERATOR.integers(550, 650, 6000),
    "tiny": np.full(100_000, 5),
    "enormous": np.array([3_000_000]),
}


@pytest.mark.parametrize("row_length", [512, 1024, 4096, 8192])
@pytest.mark.parametrize("corpus", CORPORA)
def test_rows_are_full_whatever_the_lengths_of_documents(corpus, row_length):
    lengths = CORPORA[corpus]
    rows = packed(lengths, row_length, calls=range(0, len(lengths), 1000))
    contents = sum(len(row.tokens) - 2 * len(row.lengths) for row in rows)
    assert contents == lengths.sum()
    assert min(len(row.tokens) for row in rows[:-1]) >= 0.995 * row_length
    if len(rows) > 50:  # with fewer before the last, that one is kept however empty it is
        *before, last = (len(row.tokens) for row in rows)
        trained_on = rows[:-1] if gives_up_last(len(before), sum(before), last, row_length) else rows
        assert sum(len(row.tokens) for row in trained_on) >= 0.995 * row_length * len(trained_on)
        assert len(rows) - len(trained_on) <= 1


@pytest.mark.parametrize("row_length", [512, 1024, 4096, 8192])
@pytest.mark.parametrize("corpus", ["web", "short web"])
def test_documents_of_natural_lengths_are_hardly_ever_cut_where_a_row_could_hold_them(corpus, row_length):
    lengths = CORPORA[corpus]
    pieces = sum(len(row.lengths) for row in packed(lengths, row_length))
    needed = int(np.ceil(lengths / (row_length - 2)).sum())
    assert needed <= pieces <= 1.02 * needed


@given(**SMALL, **BUFFERS, **FRAMES, stride=st.integers(0, 3))
def test_a_token_keeps_whether_it_begins_a_word_and_every_piece_and_special_token_begins_one(
    lengths, row_length, buffer, buffer_tokens, frame, stride
):
    row_length += 3 + max(0, frame.slots - FRAME.slots)
    tokens, lengths, numbers = numbered(lengths)
    packers = [Packer(row_length, frame, stride, buffer) for _ in range(2)]
    with mock.patch.object(packing, "BUFFER_TOKENS", buffer_tokens):
        rows, plain = (
            [*packer.add(tokens, lengths, numbers, *word_starts), *packer.finish()]
            for packer, word_starts in zip(packers, ([(tokens % 3 == 0).astype(np.uint8)], []), strict=True)
        )
    for row, same in zip(rows, plain, strict=True):
        assert (row.tokens == same.tokens).all() and (row.lengths == same.lengths).all() and same.word_starts is None
        for piece, word_starts in zip(
            *(np.split(values, np.cumsum(row.lengths)[:-1]) for values in (row.tokens, row.word_starts)), strict=True
        ):
            expected = piece % 3 == 0
            expected[: len(frame.before) + 1] = True
            expected[len(piece) - len(frame.after) :] = True
            assert word_starts.tolist() == expected.tolist()
            assert word_starts.dtype == np.uint8


def test_word_starts_that_are_fewer_than_the_tokens_are_refused():
    with pytest.raises(ValueError, match="9 tokens, but 8 word_starts"):
        list(Packer(12, FRAME).add(np.zeros(9, np.uint32), np.array([4, 5]), np.arange(2), np.ones(8, np.uint8)))


def test_memory_does_not_grow_with_the_corpus():
    def peak(calls):
        packer = Packer(8192, FRAME)
        lengths = np.full(250, 4000)
        tracemalloc.start()
        for call in range(calls):
            for row in packer.add(np.zeros(lengths.sum(), dtype=np.uint32), lengths, np.full(250, call)):
                encode_row(row, token_dtype(512))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(40) < 1.15 * peak(10) < 90e6


@pytest.mark.parametrize(("row_length", "stride"), [(2, 0), (12, 10), (12, -1)])
def test_rows_that_cannot_go_forward_are_refused(row_length, stride):
    with pytest.raises(
        ValueError, match=f"rows of {row_length} tokens: expected a stride of 0 to {row_length - 3}, got {stride}"
    ):
        Packer(row_length, FRAME, stride)


def test_lengths_that_are_not_those_of_the_tokens_are_refused():
    with pytest.raises(ValueError, match="10 tokens, but documents of 9"):
        list(Packer(12, FRAME).add(np.zeros(10, dtype=np.uint32), np.array([4, 5]), np.arange(2)))


@pytest.mark.parametrize(
    ("rows", "tokens", "last", "given_up"),
    [
        (60, 6000, 20, True),  # 98.7 % full with the last row
        (60, 6000, 80, False),  # 99.7 %
        (180, 18000, 20, False),  # 99.6 %
        (40, 4000, 20, False),  # too small a part to leave anything out
        (60, 5940, 20, False),  # it is not the last row's fault
        (0, 0, 20, False),
    ],
)
def test_a_last_row_is_given_up_only_where_it_alone_keeps_many_rows_under_fill(rows, tokens, last, given_up):
    assert gives_up_last(rows, tokens, last, 100) == given_up


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 20))
def test_what_is_not_cut_is_in_one_row_once_and_rows_take_what_fits(sizes, buffer):
    rows = list(whole_rows(sizes, 40, buffer))
    assert sorted(index for row in rows for index in row) == list(range(len(sizes)))
    used = [sum(sizes[index] for index in row) for row in rows]
    assert max(used, default=0) <= 40
    if buffer >= len(sizes):  # all have waited together
        assert all(used[number] + sizes[rows[later][-1]] > 40 for later in range(len(rows)) for number in range(later))


def test_what_does_not_fit_a_row_is_refused():
    with pytest.raises(ValueError, match=r"expected 1 to 40 at index 1, got 41"):
        list(whole_rows([40, 41], 40))
