"""Pack documents into rows: cut documents that are too long, then fill rows with almost no empty slots.

`Packer` takes documents and yields rows. It does not depend on files, tokenizers or torch, so that one pass over the
tokens can feed a packer for each row length.

Rows are packed one by one. A buffer holds the next documents. A row takes the longest of them, then repeatedly the
longest that still fits. (This is best-fit decreasing with one open row: only the buffer is in memory, so memory is
bounded and rows are written in one pass.) Long documents are used as they arrive, and short ones stay in the buffer to
fill gaps. Rows of long documents come first, so training must shuffle the rows.

Two alternatives were rejected. Concatenating everything and cutting at every `row_length` fills every row, but cuts
documents that would fit into a row. Starting each row with the document that has waited longest mixes rows evenly, but
leaves up to 0.5 % more empty slots at 8192, if a corpus has few short documents.

A long document is cut into pieces that fill whole rows, and its last piece is packed like any other document. Equal
pieces would leave gaps in rows that would otherwise be full.

Uncut documents do not fill the rows of every corpus: if all have 600 tokens, only one fits into a row of 1024. So if a
row would be less full than FILL, the longest waiting document is cut to fill it completely, and its rest waits. The
longest is cut because it loses the smallest share of its context. Cutting the shortest made up to twice as many cuts,
and mostly two to four times as many pieces of under 16 tokens.

No packing can fill a part's last row: 64.2 rows of tokens make 65 rows, 98.8 % full. A run pays for slots, so
`gives_up_last` leaves out such a row, at most 2 % of the part, as a `drop_last` loader does in every epoch. So the rows
of a training part of at least MANY rows are FILL full. Smaller parts, which would lose a larger share, and held-out
data keep all rows and may be less full.

For speed, tokens are moved in groups of rows by one numpy gather. Python handles each document once, as an int that is
sorted, searched and removed. Its upper bits hold the document's length, and its lower bits the start of its tokens.

Where words begin is carried along as the highest bit of their tokens, which no vocabulary needs.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from math import inf

import numpy as np

from rotary_foundry.data.rows import Frame, Row

BUFFER = 4096  # documents
BUFFER_TOKENS = 2**22
GROUP_TOKENS = 2**17  # put together at a time: few enough for a processor's cache
FILL = 0.995  # the least share of filled slots of a row, and of a training part of MANY rows
MANY = 50  # rows; a part with fewer keeps its last row

BITS = 32
LOW = 2**BITS - 1
ADVANCE = 2**BITS + 1  # subtracted from a key: one token shorter, and starts one token later
WORD_START = 2**31  # set in a token that begins a word


class Packer:
    """Packs documents into rows of at most `row_length` tokens, in one pass.

    The same documents in the same order give the same rows, however they are divided over calls of `add`. All rows but
    the last are at least FILL full (from 400 slots on; a shorter row may have two slots empty, which fit no piece).
    The pieces of a document leave in order.

    Args:
        row_length: the most tokens in a row, the frame of each document in it included.
        frame: ids to put before and after each document, or piece of one.
        stride: how many content tokens a piece of a document longer than a row shares with the piece before it, as in
            transformers' tokenizers. If a document is cut to fill a row, nothing is repeated.
        buffer: the most documents in the buffer; BUFFER_TOKENS bounds their tokens.

    Raises:
        ValueError: a row cannot hold a content token, or the stride is not smaller than a row's content.
    """

    def __init__(self, row_length: int, frame: Frame, stride: int = 0, buffer: int = BUFFER) -> None:
        most = row_length - frame.slots - 1
        if not 0 <= stride <= most:
            raise ValueError(f"rows of {row_length} tokens: expected a stride of 0 to {most}, got {stride}")
        self.row_length, self.stride, self.buffer = row_length, stride, buffer
        self._frame, self._special = frame, frame.slots
        self._spare = max(self._special, int((1 - FILL) * row_length))  # slots that a row may leave empty
        self._waiting = 0  # pieces
        self._waiting_slots = 0  # their tokens, the frames included
        self._tokens: list[np.ndarray] = []  # content tokens of waiting pieces, among others; joined when rows are made
        self._stored = 0  # number of those tokens
        self._pieces: list[np.ndarray] = []  # int64 [3, pieces]: start in the joined tokens, content tokens, number
        self._word_start = 0  # or WORD_START

    def add(
        self, tokens: np.ndarray, lengths: np.ndarray, documents: np.ndarray, word_starts: np.ndarray | None = None
    ) -> Iterator[Row]:
        """Add documents, and yield rows when the buffer is full.

        This is a generator: documents are added only as rows are taken. Exhaust it before the next call.

        Args:
            tokens: uint32 `[tokens]`: content ids of all documents, one after the other. Do not change it afterwards.
            lengths: `[documents]`: the content tokens of each; a document of 0 is skipped.
            documents: `[documents]`: the number of each, for `Row.documents`.
            word_starts: uint8 `[tokens]`: 1 where a token begins a word, for `Row.word_starts`. There the first token
                of a piece and special tokens begin a word too. Give it in every call or in none.

        Raises:
            ValueError: the sum of `lengths` is not the number of `tokens`, or there are more or fewer `word_starts`.
        """
        if word_starts is not None:
            if len(word_starts) != len(tokens):
                raise ValueError(f"{len(tokens)} tokens, but {len(word_starts)} word_starts")
            tokens = tokens | np.where(word_starts, np.uint32(WORD_START), np.uint32(0))
            self._word_start = WORD_START
        pieces = self._cut(tokens, lengths, documents)
        slots = np.cumsum(pieces[1] + self._special)
        done = 0
        while done < len(slots):
            before = (slots[done - 1] if done else 0) - self._waiting_slots
            a_row, limit = np.searchsorted(slots, [before + self.row_length, before + BUFFER_TOKENS]) + 1
            full = max(min(done + self.buffer - self._waiting, limit), a_row)  # at this piece
            new = pieces[:, done:full]
            first, end = new[0, 0], new[0, -1] + new[1, -1]
            self._pieces.append(np.stack([new[0] - first + self._stored, new[1], new[2]]))
            self._tokens.append(tokens[first:end])
            self._stored += end - first
            self._waiting += new.shape[1]
            done += new.shape[1]
            self._waiting_slots = int(slots[done - 1] - before)
            if done == full:
                yield from self._rows(self.buffer // 2, BUFFER_TOKENS // 2, self.row_length)

    def finish(self) -> Iterator[Row]:
        """Yield the rows of all remaining documents; only the last may be less full than FILL."""
        yield from self._rows(0, 0, 1)

    def _cut(self, tokens: np.ndarray, lengths: np.ndarray, documents: np.ndarray) -> np.ndarray:
        """Return int64 `[3, pieces]`: start in `tokens`, content tokens and document number of each piece."""
        lengths = np.asarray(lengths, dtype=np.int64)
        if lengths.sum() != len(tokens):
            raise ValueError(f"{len(tokens)} tokens, but documents of {lengths.sum()}")
        content = self.row_length - self._special
        step = content - self.stride
        pieces = np.where(lengths > 0, 1 + -(-np.maximum(lengths - content, 0) // step), 0)
        document = np.repeat(np.arange(len(lengths)), pieces)
        begin = (np.arange(len(document)) - (np.cumsum(pieces) - pieces)[document]) * step
        start = (np.cumsum(lengths) - lengths)[document] + begin
        size = np.minimum(lengths[document] - begin, content)
        return np.stack([start, size, np.asarray(documents, dtype=np.int64)[document]])

    def _rows(self, pieces: int, slots: int, at_least: int) -> Iterator[Row]:
        """Yield rows until at most `pieces` pieces and `slots` slots wait, or fewer than `at_least` slots."""
        if not self._waiting:
            return
        tokens = np.concatenate(self._tokens)
        self._tokens = [tokens]
        starts, sizes, numbers = np.concatenate(self._pieces, axis=1)
        keys = np.sort((sizes + self._special << BITS) | LOW - starts).tolist()
        taken: list[int] = []
        ends: list[int] = []
        while self._waiting_slots >= at_least and (len(keys) > pieces or self._waiting_slots > slots):
            self._fill(keys, taken)
            ends.append(len(taken))
            if len(ends) * self.row_length >= GROUP_TOKENS:
                yield from self._assemble(tokens, np.array(taken), ends, starts, numbers)
                taken, ends = [], []
        if ends:
            yield from self._assemble(tokens, np.array(taken), ends, starts, numbers)
        self._keep(tokens, np.array(keys, dtype=np.int64), starts, numbers)

    def _fill(self, keys: list[int], taken: list[int]) -> None:
        """Move the keys of one row from the sorted `keys` to the end of `taken`."""
        space = self.row_length
        place = len(keys)
        while place := bisect_left(keys, space + 1 << BITS, 0, place):  # the oldest of the longest that fit
            place -= 1
            key = keys.pop(place)
            taken.append(key)
            space -= key >> BITS
        self._waiting_slots -= self.row_length - space
        if space > self._spare and keys:
            key = keys.pop()
            taken.append(space << BITS | key & LOW)
            insort(keys, key - (space - self._special) * ADVANCE)
            self._waiting_slots -= space - self._special

    def _assemble(
        self, tokens: np.ndarray, taken: np.ndarray, ends: list[int], starts: np.ndarray, numbers: np.ndarray
    ) -> Iterator[Row]:
        """Yield the rows of the keys `taken`; each row ends before one of `ends`."""
        lengths, begins = taken >> BITS, LOW - (taken & LOW)
        slots = np.cumsum(lengths)
        flat = tokens.take(_ranges(begins - len(self._frame.before), lengths), mode="clip")
        for place, token in enumerate(self._frame.before):
            flat[slots - lengths + place] = token | self._word_start
        for place, token in enumerate(self._frame.after, -len(self._frame.after)):
            flat[slots + place] = token | self._word_start
        word_starts = None
        if self._word_start:
            flat[slots - lengths + len(self._frame.before)] |= np.uint32(WORD_START)  # a piece may begin inside a word
            word_starts = (flat >> np.uint32(31)).astype(np.uint8)
            flat &= np.uint32(WORD_START - 1)
        documents = numbers[np.searchsorted(starts, begins, side="right") - 1].astype(np.uint32)
        lengths = lengths.astype(np.uint32)
        start = slot = 0
        for end, slot_end in zip(ends, slots[np.array(ends) - 1].tolist(), strict=True):
            its = None if word_starts is None else word_starts[slot:slot_end]
            yield Row(flat[slot:slot_end], lengths[start:end], documents[start:end], its)
            start, slot = end, slot_end

    def _keep(self, tokens: np.ndarray, keys: np.ndarray, starts: np.ndarray, numbers: np.ndarray) -> None:
        """Drop all tokens except those of `keys`."""
        begins, sizes = LOW - (keys & LOW), (keys >> BITS) - self._special
        order = np.argsort(begins, kind="stable")
        begins, sizes = begins[order], sizes[order]
        numbers = numbers[np.searchsorted(starts, begins, side="right") - 1]
        self._tokens = [tokens.take(_ranges(begins, sizes))]
        self._stored = len(self._tokens[0])
        self._pieces = [np.stack([np.cumsum(sizes) - sizes, sizes, numbers])]
        self._waiting = len(keys)


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return `lengths[0]` integers from `starts[0]` on, then `lengths[1]` from `starts[1]` on, … No length is 0."""
    steps = np.ones(lengths.sum(), dtype=np.int64)
    steps[:1] = starts[:1]
    steps[np.cumsum(lengths)[:-1]] = starts[1:] - starts[:-1] - lengths[:-1] + 1
    return np.cumsum(steps, out=steps)


def gives_up_last(rows: int, tokens: int, last: int, row_length: int) -> bool:
    """Return whether a training part should leave out its last row.

    Args:
        rows: number of rows before the last.
        tokens: tokens in those rows.
        last: tokens in the last row.
        row_length: slots in each row.

    Returns:
        Whether there are at least MANY rows and only the last makes the part less full than FILL.
    """
    enough = FILL * row_length
    return rows >= MANY and tokens >= enough * rows and tokens + last < enough * (rows + 1)


class WholePacker:
    """Packs items that must not be cut, such as labelled examples, into rows, in one pass.

    A row takes the longest waiting item, then repeatedly the longest that still fits; among equal ones, the oldest. A
    row is a list of the indices of its items, in the order in which they were taken.

    Args:
        row_length: the most tokens in a row.
        buffer: the most items that wait.
        buffer_tokens: the most tokens that the waiting items have together.
    """

    def __init__(self, row_length: int, buffer: int = BUFFER, buffer_tokens: float = inf) -> None:
        self.row_length, self.buffer, self.buffer_tokens = row_length, buffer, buffer_tokens
        self._waiting: list[int] = []  # sorted keys, as in Packer
        self._tokens = self._added = 0

    def add(self, size: int) -> Iterator[list[int]]:
        """Add an item of `size` tokens; its index is the number of items before it. Yield rows if the buffer is full.

        This is a generator, as `Packer.add` is.

        Raises:
            ValueError: it is empty or longer than a row.
        """
        if not 0 < size <= self.row_length:
            raise ValueError(
                f"rows of {self.row_length} tokens: expected 1 to {self.row_length} at index {self._added}, got {size}"
            )
        insort(self._waiting, size << BITS | LOW - self._added)
        self._added += 1
        self._tokens += size
        if len(self._waiting) >= self.buffer or self._tokens >= self.buffer_tokens:
            while len(self._waiting) > self.buffer // 2 or self._tokens > self.buffer_tokens / 2:
                yield self._row()

    def finish(self) -> Iterator[list[int]]:
        """Yield the rows of all waiting items."""
        while self._waiting:
            yield self._row()

    def _row(self) -> list[int]:
        space, place, taken = self.row_length, len(self._waiting), []
        while place := bisect_left(self._waiting, space + 1 << BITS, 0, place):
            place -= 1
            key = self._waiting.pop(place)
            taken.append(LOW - (key & LOW))
            space -= key >> BITS
        self._tokens -= self.row_length - space
        return taken


def whole_rows(sizes: Iterable[int], row_length: int, buffer: int = BUFFER) -> Iterator[list[int]]:
    """Yield the rows that a `WholePacker` makes of items of these sizes. Raises as `WholePacker.add`."""
    packer = WholePacker(row_length, buffer)
    for size in sizes:
        yield from packer.add(size)
    yield from packer.finish()
