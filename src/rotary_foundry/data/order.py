"""The canonical order of a stage's rows: a pure function of the index files and of what is drawn.

The training stream deals this order out, and `rotary-foundry data trace` reads from it which rows an update saw. So it
is here by itself, without shared memory, a data set or a process group. The shuffling is Streaming's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from streaming.base.shuffle import get_shuffle

from rotary_foundry.data.sampling import sample_rows


@dataclass(frozen=True)
class Draw:
    """A stretch of a stage to be drawn: whole updates of `global_batch_size` rows, from `start_row` of the stage on."""

    seed: int
    stage_index: int
    mixture: dict[str, float] | None  # share of the rows by source; none: every row of every source once an epoch
    start_row: int
    updates: int
    global_batch_size: int


@dataclass(frozen=True)
class CanonicalOrder:
    """The order of the rows of one length. A row's index counts through all sources, and in each through its shards."""

    sources: Sequence[str]  # in a fixed order
    shard_rows: Sequence[NDArray[np.int64]]  # of each source: the rows of its shards
    shuffle_algo: str  # these two as Streaming's
    shuffle_block_size: int

    def rows_an_epoch(self, mixture: dict[str, float] | None) -> list[int]:
        """How many rows of each source an epoch draws; under a mixture, by largest remainder."""
        there = [int(rows.sum()) for rows in self.shard_rows]
        if mixture is None:
            return there
        weights = np.array([mixture.get(source, 0.0) for source in self.sources])
        total = sum(rows for rows, weight in zip(there, weights, strict=True) if weight)
        exact = total * weights / weights.sum()
        rows = np.floor(exact).astype(int)
        rows[np.argsort(rows - exact, kind="stable")[: total - rows.sum()]] += 1
        return rows.tolist()

    def epoch(self, draw: Draw, epoch: int) -> NDArray[np.int64]:
        """Row indices of one epoch of the draw's stage, in order, each drawn as often as the mixture says."""
        seed = int(np.random.SeedSequence((draw.seed, draw.stage_index)).generate_state(1)[0])
        units, rows = sample_rows(self.shard_rows, self.rows_an_epoch(draw.mixture), seed, epoch)
        return rows[get_shuffle(self.shuffle_algo, units, 1, seed, epoch, self.shuffle_block_size)]

    def part(self, draw: Draw, epoch: int, start: int, rows: int) -> NDArray[np.int64]:
        """So many row indices of an epoch from `start` on, or as many as it has."""
        return self.epoch(draw, epoch)[start : start + rows]

    def updates(self, draw: Draw) -> NDArray[np.int64]:
        """The row indices of the draw's updates, int64 [updates, global_batch_size], one epoch joined to the next."""
        epoch, offset = divmod(draw.start_row, sum(self.rows_an_epoch(draw.mixture)))
        missing = draw.updates * draw.global_batch_size
        parts = []
        while missing:
            part = self.part(draw, epoch, offset, missing)
            parts.append(part)
            missing, epoch, offset = missing - len(part), epoch + 1, 0
        return np.concatenate(parts).reshape(draw.updates, draw.global_batch_size)
