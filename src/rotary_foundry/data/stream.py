"""The training stream: Streaming's data set with one change, the assignment of rows to updates, ranks and workers.

Streaming's own batching pads the end of an epoch or gives a short update. Either would make the token clock drift. And
it takes its position from a checkpoint. Here each loader worker reads its rows from the canonical order
(order.py), from "rows drawn in this stage" on. So every update is one whole slice of the order, and has the same rows
for any number of ranks and workers. This needs no memory that grows with the rows of the segment. Downloads, caching,
prefetching and workers remain Streaming's.

One data set serves all stages of a row length, because Streaming refuses a second one on the same local cache.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from streaming.base.world import World

from rotary_foundry.data.block_order import BlockOrder, order_of
from rotary_foundry.data.checked_shards import CheckedShards, CheckedStream
from rotary_foundry.data.order import Draw, StageOrder, share


class WorkerRows:
    """The rows that one loader worker of one rank reads, in order: its rank's share of every update that it makes.

    Worker u mod workers of every rank makes update u of the draw, because torch's loader asks its workers in turn. In a
    multi-task stage, every rank reads an equal part of each block.

    Args:
        order: the order of the stage's rows.
        draw: the stretch of that order to read, and the rows per update.
        world: the rank and number of this worker.
    """

    def __init__(self, order: StageOrder | BlockOrder, draw: Draw, world: World):
        self.order = order
        self.draw = draw
        self.block = draw.rows_per_block or draw.global_batch_size
        self.of_block = share(self.block, world.rank, world.num_ranks)
        self.rows_a_rank = draw.global_batch_size // self.block * len(self.of_block)
        self.updates = range(world.worker_of_rank, draw.updates, world.workers_per_rank)

    def __len__(self) -> int:
        return len(self.updates) * self.rows_a_rank

    def __getitem__(self, index: int) -> int:
        """Return the index of a row over all sources."""
        return self.order[self.position(index)]

    def position(self, index: int) -> int:
        """Return the number of rows that the stage draws before this row."""
        turn, row = divmod(index, self.rows_a_rank)
        block, row = divmod(row, len(self.of_block))
        start = self.draw.start_row + self.updates[turn] * self.draw.global_batch_size
        return start + block * self.block + self.of_block[row]


class TrainingStream(CheckedShards):
    """Rows of one length from several sources, in the order that the plan decides.

    Yields dicts with `row` (index over all sources), `source`, `position` (in the stage), `tokens` and `lengths`.

    Args:
        sources: names, in a fixed order.
        local: the folder that holds `<source>/<row_length>/train`.
        remote: where the same tree is stored; `local` is then its cache.
        row_length: the row length of the shards, in tokens.
        shuffle_block_size: about how many rows are shuffled together.
        draw: what to draw first; `self.draw` may be set again between loaders.
        cache_limit: Streaming's, for the rows of this length.
    """

    def __init__(
        self,
        sources: list[str],
        local: str | Path,
        remote: str | None,
        row_length: int,
        shuffle_block_size: int,
        draw: Draw,
        cache_limit: str | None = None,
    ):
        super().__init__(
            streams=row_streams(sources, local, remote, row_length, "train"),
            cache_limit=cache_limit,
        )
        self.sources = sources
        shard_rows = np.split(self.samples_per_shard, self.shards_per_stream.cumsum()[:-1])
        self.shard_rows = dict(zip(sources, shard_rows, strict=True))
        self.shuffle_block_size = shuffle_block_size
        self.draw = draw

    @property
    def draw(self) -> Draw:
        """The stretch that the next loader draws."""
        return self._draw

    @draw.setter
    def draw(self, draw: Draw) -> None:
        self._draw = draw
        self.order = order_of(self.shard_rows, self.shuffle_block_size, draw)
        self.batch_size = len(share(draw.global_batch_size, self.rank_world.rank, self.rank_world.num_ranks))
        self.predownload = 8 * self.batch_size
        self.length = draw.updates * self.batch_size

    @property
    def rows_by_source(self) -> dict[str, int]:
        """The number of rows of each source."""
        return dict(zip(self.sources, self.samples_per_stream.tolist(), strict=True))

    def get_item(self, sample_id: int, retry: int = 7) -> dict:
        shard, _ = self.spanner[sample_id]
        source = self.sources[self.stream_per_shard[shard]]
        return super().get_item(sample_id, retry) | {"row": int(sample_id), "source": source}

    def __iter__(self) -> Iterator[dict]:
        for index, sample in enumerate(super().__iter__()):
            yield sample | {"position": self._rows.position(index)}

    def worker_rows(self, epoch: int, sample_in_epoch: int) -> WorkerRows:
        self._rows = WorkerRows(self.order, self.draw, self.worker_world)
        return self._rows

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict:
        """Return nothing: the plan and the token clock determine the position of the stream."""
        return {}

    def load_state_dict(self, obj: dict) -> None:
        """Do nothing; see `state_dict`."""


def row_streams(
    sources: list[str], local: str | Path, remote: str | None, row_length: int, split: str
) -> list[CheckedStream]:
    """Make one Streaming stream per source."""
    folders = [f"{source}/{row_length}/{split}" for source in sources]
    return [
        CheckedStream(f"{local}/{folder}", f"{remote.rstrip('/')}/{folder}" if remote else None) for folder in folders
    ]
