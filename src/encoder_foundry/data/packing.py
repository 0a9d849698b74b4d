"""Documents into rows: cut what is too long, then fill rows so that hardly a slot is left empty.

`cut`, `pack` and `drop_remainder` are pure functions over streams of arrays; none knows files, tokenizers or torch.

Packing goes row by row. A buffer holds the next documents; a row takes the longest of them, then again and again the
longest that still fits. (This is best-fit decreasing told from the row's side: nothing but the buffer is ever open, so
memory is bounded and rows leave in one pass.) Long documents are used up as they arrive and the short ones stay behind
as a stock to fill gaps with: the nano corpus takes at most two rows more than its tokens need, at any row length, and a
buffer of 256 does as well. Rows of long documents leave first, so whoever trains on rows shuffles them.
What lost: concatenating everything and cutting at every `row_length` (always full, but it cuts documents that a row
has room for), and giving each row the document that has waited longest first (evenly mixed rows, but up to 0.5 %
emptier at 8192, where a corpus has few short documents).

A long document is cut into pieces that fill whole rows, and its last piece is a document like any other: equal pieces
would turn rows that are full by construction into gaps to be filled.

What no packing can fill is a source's last row: 64.2 rows of tokens make 65 rows, 98.8 % full. Training slots are what
a run pays for, so `drop_remainder` gives such a row up, under 1 % of the source, as a `drop_last` loader does in every
epoch. Small sources, of which it would be more, and what is held out keep all they have.
"""

from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

BUFFER = 4096  # documents
FILL = 0.99  # the share of a training split's slots that hold tokens
MANY = 50  # rows; with fewer a last row may be too much to give up


def cut(documents: Iterable[np.ndarray], row_length: int, cls_id: int, sep_id: int) -> Iterator[np.ndarray]:
    """Wrap each document in [CLS] … [SEP], a long one as several pieces of at most `row_length` tokens.

    Args:
        documents: content ids `[tokens]` without special tokens; an empty one gives nothing.
        row_length: the most tokens in a piece, its two special tokens included.

    Yields:
        Arrays `[tokens]`, in order; their contents joined are the document.
    """
    content = row_length - 2
    for document in documents:
        for start in range(0, len(document), content):
            yield np.concatenate([[cls_id], document[start : start + content], [sep_id]]).astype(document.dtype)


def pack(documents: Iterable[np.ndarray], row_length: int, buffer: int = BUFFER) -> Iterator[list[np.ndarray]]:
    """Group documents, each of at most `row_length` tokens, into rows of at most `row_length` tokens.

    The same documents in the same order give the same rows. No document is cut, changed or left out.

    Raises:
        ValueError: a document is longer than a row; `cut` comes first.
    """
    arriving = enumerate(documents)
    waiting: dict[int, np.ndarray] = {}
    by_length: list[tuple[int, int]] = []  # (length, arrival) of all that wait, sorted
    while True:
        for arrival, document in islice(arriving, buffer - len(by_length)):
            if len(document) > row_length:
                raise ValueError(f"a document of {len(document)} tokens does not fit a row of {row_length}")
            waiting[arrival] = document
            insort(by_length, (len(document), arrival))
        if not by_length:
            return
        yield [waiting.pop(arrival) for arrival in _fill(by_length, row_length)]


def _fill(by_length: list[tuple[int, int]], space: int) -> list[int]:
    """Take out of `by_length` the documents of one row: each time the longest that fits into what space is left."""
    taken = []
    while place := bisect_right(by_length, (space, float("inf"))):
        length, arrival = by_length.pop(place - 1)
        taken.append(arrival)
        space -= length
    return taken


def drop_remainder(rows: Iterable[list[np.ndarray]], row_length: int) -> Iterator[list[np.ndarray]]:
    """The rows without the last, where at least MANY come before it and it alone keeps them less full than FILL."""
    held: list[np.ndarray] = []
    count = tokens = 0
    for row in rows:
        if held:
            yield held
            count += 1
            tokens += sum(map(len, held))
        held = row
    total = tokens + sum(map(len, held))
    helps = tokens >= FILL * count * row_length and total < FILL * (count + 1) * row_length
    if held and not (helps and count >= MANY):
        yield held
