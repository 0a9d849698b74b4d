"""The canonical order of a stage's rows: a pure function of the index files and the draw, computed block by block.

The training stream reads rows in this order, and `rotary-foundry data trace` finds in it which rows an update saw. So
this module needs no shared memory, data set or process group. It never computes the order of a whole epoch: 1.7e9 rows
would take minutes and 66 GB at every start of a loader (benchmarks/README.md). It keeps only the shards of an epoch in
their order, and the blocks that were read last.

- A source's rows are drawn in passes. A pass takes every row once, in a random order of the shards. An epoch continues
  the pass where the epoch before stopped, even in the middle of a shard. So at the end of every epoch each row has been
  drawn as often as any other row of its source, or once more, whatever the mixture is.
- The shards of all sources are laid out over the epoch so that each source is spread evenly over it. Neighbouring
  shards form blocks of about `shuffle_block_size` rows. Each block has a generator of its own that shuffles its rows.

Streaming's own shuffles and its `resample_streams` need all rows of an epoch at once, so they cannot be used here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# The purposes of generators. These are seeded by five numbers, and the generators of rows by three, so they differ.
_PASS, _EPOCH, _BLOCK = range(3)


@dataclass(frozen=True)
class Draw:
    """A stretch of a stage to draw: whole updates of `global_batch_size` rows, from `start_row` of the stage on."""

    seed: int
    stage_index: int
    mixture: dict[str, float] | None  # share of the rows by source; None: every row of every source once per epoch
    start_row: int
    updates: int
    global_batch_size: int
    rows_per_block: int | None = None  # in a multi-task stage, which draws blocks; `mixture` then has the weights


def share(rows: int, rank: int, ranks: int) -> range:
    """Return which rows of an update or a block a rank has; the numbers of rows of two ranks differ by at most one."""
    return range(rows * rank // ranks, rows * (rank + 1) // ranks)


class Epoch(NamedTuple):
    """An epoch's parts in order, and its blocks. A part is a shard, or the rows of it that the epoch draws."""

    first_rows: NDArray[np.int64]  # [parts]: row index of each part's first row
    rows: NDArray[np.int64]  # [parts]: number of rows of each part
    first_parts: NDArray[np.int64]  # [blocks + 1]: each block's first part; the last element is the number of parts
    starts: NDArray[np.int64]  # [blocks]: number of rows of the epoch before each block


class StageOrder:
    """The rows of a stage by position, one epoch joined to the next.

    The index of a row counts the rows of all sources, in their order, and the rows of each source's shards, in theirs.

    Args:
        shard_rows: by source, in a fixed order, the number of rows of each of its shards, int64 [shards].
        shuffle_block_size: about how many rows are shuffled together, always whole shards.
        seed: the seed of the run.
        stage_index: the index of the stage in the recipe.
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
        self._keep_newest()

    def _keep_newest(self) -> None:
        # in a loader worker three threads read at the same time, the first of them some updates ahead
        self._epoch, self._block = lru_cache(2)(self._epoch), lru_cache(4)(self._block)

    def __getstate__(self) -> dict:
        """Return what is pickled for a loader worker that is not forked: all but the caches."""
        return {name: value for name, value in vars(self).items() if name not in ("_epoch", "_block")}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._keep_newest()

    def __getitem__(self, position: int) -> int:
        """Return the index of the row at a position."""
        block, offset = self._at(position)
        return int(block[offset])

    def stretch(self, position: int, rows: int) -> NDArray[np.int64]:
        """Return the indices of `rows` rows from a position on, int64 [rows]."""
        parts = [np.empty(0, np.int64)]
        while rows > 0:
            block, offset = self._at(position)
            parts.append(block[offset : offset + rows])
            position, rows = position + len(parts[-1]), rows - len(parts[-1])
        return np.concatenate(parts)

    def _at(self, position: int) -> tuple[NDArray[np.int64], int]:
        """Return the rows of the block that contains a position, and the place of the position among them."""
        epoch, offset = divmod(position, self.epoch_rows)
        starts = self._epoch(epoch).starts
        block = int(np.searchsorted(starts, offset, "right")) - 1
        return self._block(epoch, block), offset - int(starts[block])

    def _epoch(self, epoch: int) -> Epoch:
        """Lay out the shards of an epoch."""
        first_rows, sizes, places = [], [], []
        before_source = 0
        for source, (shards, asked) in enumerate(zip(self.shard_rows, self.rows_an_epoch, strict=True)):
            parts = list(self._parts(source, epoch * asked, asked))
            if parts:
                first, size = (np.concatenate(column) for column in zip(*parts, strict=True))
                first_rows.append(before_source + first)
                sizes.append(size)
                # place each part at random within the stretch of the epoch that its share of the source takes
                jitter = self._generator(_EPOCH, epoch, source).random(len(size))
                places.append((size.cumsum() - size + jitter * size) / asked)
            before_source += int(shards.sum())
        order = np.argsort(np.concatenate(places), kind="stable")
        first_rows, sizes = np.concatenate(first_rows)[order], np.concatenate(sizes)[order]
        before = sizes.cumsum() - sizes
        _, first_parts = np.unique(before // self.shuffle_block_size, return_index=True)
        return Epoch(first_rows, sizes, np.append(first_parts, len(sizes)), before[first_parts])

    def _parts(self, source: int, start: int, rows: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Yield, per pass, the first row and size of the shards that hold `rows` draws of a source from `start` on."""
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
    """Return the rows per epoch of each source; the shares of a mixture are rounded by largest remainder."""
    if mixture is None:
        return list(there.values())
    weights = np.array([mixture.get(source, 0.0) for source in there])
    total = sum(rows for rows, weight in zip(there.values(), weights, strict=True) if weight)
    exact = total * weights / weights.sum()
    rows = np.floor(exact).astype(int)
    rows[np.argsort(rows - exact, kind="stable")[: total - rows.sum()]] += 1
    return rows.tolist()
