"""The computed shares of context equal those of a loop over every token."""

from collections.abc import Iterator
from itertools import chain

import numpy as np
import pytest

from rotary_foundry.data.rows import Manifest
from rotary_foundry.data.target_context import context_shares, count_longer, counted_lengths, rows_drawn

ROW = 1024
GENERATOR = np.random.default_rng(3)


def random_rows(longest: int) -> list[list[int]]:
    """Lengths of the documents of full rows, each at least 3."""
    rows = []
    for _ in range(20):
        row = []
        while (left := ROW - sum(row)) > 0:
            length = min(left, int(GENERATOR.integers(3, longest)))
            row.append(left if left - length < 3 else length)
        rows.append(row)
    return rows


def manifest_of(rows: list[list[int]], source: str) -> Manifest:
    documents, tokens = sum(map(len, rows)), sum(map(sum, rows))
    longer = sum(count_longer(np.array(row), ROW) for row in rows).tolist()
    by_length = dict(zip(map(str, counted_lengths(ROW)), longer, strict=True))
    return Manifest(source, "train", ROW, len(rows), documents, tokens, tokens / len(rows) / ROW, "made", by_length)


def contexts(row: list[int], causal: bool, document_mask: bool) -> Iterator[int]:
    """The number of other tokens that each target of a row sees."""
    before = 0
    for length in row:
        if not causal:
            yield from [length - 1] * (length - 2)  # without the frame
        elif document_mask:
            yield from range(1, length)
        else:
            yield from range(before + 1, before + length)
        before += length


def test_documents_are_counted_by_doublings_below_the_row():
    assert counted_lengths(1024) == [128, 256, 512]
    assert (counted_lengths(129), counted_lengths(128)) == ([128], [])
    assert count_longer(np.array([128, 129, 600]), 1024).tolist() == [[2, 729], [1, 600], [1, 600]]


@pytest.mark.parametrize("causal", [True, False])
def test_shares_are_those_of_every_target_weighted_by_the_mixture(causal):
    rows = {"short": random_rows(150), "long": random_rows(1200)}
    manifests = {source: manifest_of(of_source, source) for source, of_source in rows.items()}
    mixture = {"short": 3.0, "long": 1.0}
    shares = context_shares(mixture, manifests, causal, True)
    seen = {
        source: np.fromiter(chain.from_iterable(contexts(row, causal, True) for row in of_source), int)
        for source, of_source in rows.items()
    }
    everything = sum(weight * len(seen[source]) for source, weight in mixture.items())
    for at_least, share in shares.items():
        there = sum(weight * int((seen[source] >= at_least).sum()) for source, weight in mixture.items())
        assert share == pytest.approx(there / everything)
    assert list(shares) == [0, 128, 256, 512]
    assert 0.02 < shares[512] < shares[128] < shares[0] == 1


def test_without_the_mask_context_is_that_of_the_row():
    rows = random_rows(300)
    shares = context_shares({"one": 1}, {"one": manifest_of(rows, "one")}, True, False)
    seen = np.fromiter(chain.from_iterable(contexts(row, True, False) for row in rows), int)
    for at_least, share in shares.items():
        assert share == pytest.approx((seen >= at_least).mean(), abs=0.01)  # which targets are missing is not counted


def test_rows_are_drawn_by_the_mixture_or_by_what_is_there():
    manifests = [(name, manifest_of(random_rows(300)[:rows], name)) for name, rows in (("a", 5), ("b", 15))]
    assert rows_drawn(100, {"a": 3, "b": 1}, manifests) == {"a": 75, "b": 25}
    assert rows_drawn(100, None, manifests) == {"a": 25, "b": 75}
