"""The canonical order of a stage's rows: a pure function of the index files and of what is drawn.

The training stream deals this order out, and `encoder-foundry data trace` reads from it which rows an update saw. So it
is here by itself, without shared memory, a data set or a process group. The sampling is Streaming's own, called on no
more than it reads: the same order as a StreamingDataset's with one canonical node, batch size and world left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray
from streaming import StreamingDataset
from streaming.base.shuffle import get_shuffle


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
        shards = np.array([len(rows) for rows in self.shard_rows])
        samples_per_shard = np.concatenate(self.shard_rows)
        sampled = SimpleNamespace(
            streams=[SimpleNamespace(choose=rows) for rows in self.rows_an_epoch(draw.mixture)],
            num_streams=len(self.sources),
            shards_per_stream=shards,
            shard_offset_per_stream=shards.cumsum() - shards,
            samples_per_shard=samples_per_shard,
            sample_offset_per_shard=samples_per_shard.cumsum() - samples_per_shard,
            shuffle_seed=seed,
            sampling_method="balanced",
            sampling_granularity=1,
            epoch_seed_change=True,
        )
        units, rows = StreamingDataset.resample_streams(sampled, epoch)
        return rows[get_shuffle(self.shuffle_algo, units, 1, seed, epoch, self.shuffle_block_size)]

    def updates(self, draw: Draw) -> NDArray[np.int64]:
        """The row indices of the draw's updates, int64 [updates, global_batch_size], one epoch joined to the next."""
        epoch, offset = divmod(draw.start_row, sum(self.rows_an_epoch(draw.mixture)))
        missing = draw.updates * draw.global_batch_size
        parts = []
        while missing:
            part = self.epoch(draw, epoch)[offset : offset + missing]
            parts.append(part)
            missing, epoch, offset = missing - len(part), epoch + 1, 0
        return np.concatenate(parts).reshape(draw.updates, draw.global_batch_size)
