"""The canonical order of a stage's rows: a pure function of the index files and of what is drawn, block by block.

The training stream deals this order out, and `rotary-foundry data trace` reads from it which rows an update saw. So it
is here by itself, without shared memory, a data set or a process group. No epoch is ever made whole: 1.7e9 rows would
take minutes and 66 GB at every start of a loader (benchmarks/README.md). What is kept is small: the shards of an epoch
in their order, and the blocks that were read last.

- A source's rows are drawn in passes. A pass takes every row once, in a random order of the shards. An
  epoch goes on in the pass where the one before stopped, in the middle of a shard if need be. So at the end of every
  epoch a row has been drawn as often as any other of its source, or once more, whatever the mixture asks for.
- The shards of all sources are laid out over the epoch so that each source is spread evenly over it, and neighbours are
  gathered to blocks of about `shuffle_block_size` rows. A generator of the block's own shuffles its rows.

Streaming's own shuffles and its `resample_streams` need all rows of an epoch at once, so they cannot serve here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# What a generator is for. It is seeded by five numbers, as the rows' own generators are by three.
_PASS, _EPOCH, _BLOCK = range(3)


@dataclass(frozen=True)
class Draw:
    """A stretch of a stage to be drawn: whole updates of `global_batch_size` rows, from `start_row` of the stage on."""

    seed: int
    stage_index: int
    mixture: dict[str, float] | None  # share of the rows by source; none: every row of every source once an epoch
    start_row: int
    updates: int
    global_batch_size: int
    rows_per_block: int | None = None  # of a multi-task stage, whose order is by blocks; `mixture` then has the weights


def share(rows: int, rank: int, ranks: int) -> range:
    """Return which rows of an update, or of a block, a rank has; the ranks' numbers of rows differ by at most one."""
    return range(rows * rank // ranks, rows * (rank + 1) // ranks)


class Epoch(NamedTuple):
    """An epoch's shards, or the parts of them that it draws, in order, and its blocks."""

    first_rows: NDArray[np.int64]  # [parts]: row index of each part's first row
    rows: NDArray[np.int64]  # [parts]: how many rows each has
    first_parts: NDArray[np.int64]  # [blocks + 1]: where each block's parts begin; then the number of parts
    starts: NDArray[np.int64]  # [blocks]: how many rows of the epoch come before each block


class StageOrder:
    """The rows of a stage by position, one epoch joined to the next.

    A row's index counts through all sources, and in each through its shards.

    Args:
        shard_rows: of each source, in a fixed order, the rows of its shards, int64 [shards].
        shuffle_block_size: about how many rows are shuffled together, whole shards.
        seed: the run's.
        stage_index: of the stage in the recipe.
        mixture: as in `Draw`.
    """

    def __init__(
        self,
        shard_rows: Mapping[str, NDArray[np.int64]],
        shuffle_block_size: int,
        seed: int,
        stage_index: int,
        mixture: dict[str, float] | None,
    ):
        self.shard_rows = list(shard_rows.values())
        self.shuffle_block_size = shuffle_block_size
        self.rows_an_epoch = rows_an_epoch({source: int(rows.sum()) for source, rows in shard_rows.items()}, mixture)
        self.epoch_rows = sum(self.rows_an_epoch)
        self._key = seed, stage_index
        # of a loader worker three threads read at a time, the first of them some updates ahead
        self._epoch, self._block = lru_cache(2)(self._epoch), lru_cache(4)(self._block)

    def __getitem__(self, position: int) -> int:
        """Return the index of the row at a position."""
        block, offset = self._at(position)
        return int(block[offset])

    def stretch(self, position: int, rows: int) -> NDArray[np.int64]:
        """Return the indices of so many rows from a position on, int64 [rows]."""
        parts = [np.empty(0, np.int64)]
        while rows > 0:
            block, offset = self._at(position)
            parts.append(block[offset : offset + rows])
            position, rows = position + len(parts[-1]), rows - len(parts[-1])
        return np.concatenate(parts)

    def _at(self, position: int) -> tuple[NDArray[np.int64], int]:
        """The rows of the block that a position lies in, and its place among them."""
        epoch, offset = divmod(position, self.epoch_rows)
        starts = self._epoch(epoch).starts
        block = int(np.searchsorted(starts, offset, "right")) - 1
        return self._block(epoch, block), offset - int(starts[block])

    def _epoch(self, epoch: int) -> Epoch:
        """Lay an epoch's shards out."""
        first_rows, sizes, places = [], [], []
        before_source = 0
        for source, (shards, asked) in enumerate(zip(self.shard_rows, self.rows_an_epoch, strict=True)):
            parts = list(self._parts(source, epoch * asked, asked))
            if parts:
                first, size = (np.concatenate(column) for column in zip(*parts, strict=True))
                first_rows.append(before_source + first)
                sizes.append(size)
                # each part somewhere in the stretch of the epoch that is as long as its share of the source
                jitter = self._generator(_EPOCH, epoch, source).random(len(size))
                places.append((size.cumsum() - size + jitter * size) / asked)
            before_source += int(shards.sum())
        order = np.argsort(np.concatenate(places), kind="stable")
        first_rows, sizes = np.concatenate(first_rows)[order], np.concatenate(sizes)[order]
        before = sizes.cumsum() - sizes
        _, first_parts = np.unique(before // self.shuffle_block_size, return_index=True)
        return Epoch(first_rows, sizes, np.append(first_parts, len(sizes)), before[first_parts])

    def _parts(self, source: int, start: int, rows: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Yield first row and size of the shards that hold so many draws of a source from one on, a pass at a time."""
        shards = self.shard_rows[source]
        there, first_rows = int(shards.sum()), shards.cumsum() - shards
        while rows:
            number, offset = divmod(start, there)
            taken = min(rows, there - offset)
            order = self._generator(_PASS, source, number).permutation(len(shards))
            sizes = shards[order]
            before = sizes.cumsum() - sizes
            begin, end = (np.clip(bound - before, 0, sizes) for bound in (offset, offset + taken))
            drawn = begin < end
            yield (first_rows[order] + begin)[drawn], (end - begin)[drawn]
            start, rows = start + taken, rows - taken

    def _block(self, epoch: int, block: int) -> NDArray[np.int64]:
        """Shuffle the rows of a block."""
        made = self._epoch(epoch)
        parts = slice(made.first_parts[block], made.first_parts[block + 1])
        first_rows, sizes = made.first_rows[parts], made.rows[parts]
        rows = np.repeat(first_rows - (sizes.cumsum() - sizes), sizes) + np.arange(sizes.sum())
        self._generator(_BLOCK, epoch, block).shuffle(rows)
        return rows

    def _generator(self, purpose: int, *numbers: int) -> np.random.Generator:
        return np.random.default_rng((*self._key, purpose, *numbers))


def rows_an_epoch(there: dict[str, int], mixture: dict[str, float] | None) -> list[int]:
    """Return how many rows of each source an epoch draws; a mixture's shares are rounded by largest remainder."""
    if mixture is None:
        return list(there.values())
    weights = np.array([mixture.get(source, 0.0) for source in there])
    total = sum(rows for rows, weight in zip(there.values(), weights, strict=True) if weight)
    exact = total * weights / weights.sum()
    rows = np.floor(exact).astype(int)
    rows[np.argsort(rows - exact, kind="stable")[: total - rows.sum()]] += 1
    return rows.tolist()
