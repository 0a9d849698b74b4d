"""The training stream: Streaming's data set with one thing changed, the way it deals rows out.

Streaming's own batching pads an epoch's end or gives a short update, which would make the token clock drift, and takes
its position from a checkpoint. `whole_updates` instead takes the canonical order of the rows (order.py; kept on
the node by kept_order.py) from "rows drawn in this stage" on and deals it out so that every update is one whole slice:
the same rows for any number of ranks and loader workers. It is entered in the table by which Streaming itself
dispatches, so downloads, caching, prefetching and workers stay Streaming's.

One data set serves all stages of a row length, since Streaming refuses a second one on the same local cache.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from streaming.base.batching import batching_methods
from streaming.base.world import World

from rotary_foundry.data.checked_shards import CheckedShards, CheckedStream
from rotary_foundry.data.kept_order import KeptOrder
from rotary_foundry.data.order import Draw

# The order of this many rows at most is put into shared memory at a time (8 bytes a row); then the loader starts anew.
MAX_ROWS_DEALT = 1 << 24


class TrainingStream(CheckedShards):
    """Rows of one length from several sources, in the order that the plan decides.

    Yields dicts with `row` (index over all sources), `source`, `position` (in the stage), `tokens` and `lengths`.

    Args:
        sources: names, in a fixed order.
        local: the folder that holds `<source>/<row_length>/train`.
        remote: the same tree elsewhere, of which `local` is then the cache.
        row_length: of the shards.
        shuffle_algo, shuffle_block_size: as Streaming's.
        draw: what to draw first; `self.draw` may be set again between loaders.
        cache_limit: as Streaming's, of the rows of this length.
    """

    def __init__(
        self,
        sources: list[str],
        local: str | Path,
        remote: str | None,
        row_length: int,
        shuffle_algo: str,
        shuffle_block_size: int,
        draw: Draw,
        cache_limit: str | None = None,
    ):
        super().__init__(
            streams=row_streams(sources, local, remote, row_length, "train"),
            shuffle=True,
            num_canonical_nodes=1,
            batching_method="random",
            cache_limit=cache_limit,
        )
        self.batching_method = "whole_updates"  # not above: __init__ checks a list of its own
        self.sources = sources
        shard_rows = np.split(self.samples_per_shard, self.shards_per_stream.cumsum()[:-1])
        self.order = KeptOrder(sources, shard_rows, shuffle_algo, shuffle_block_size)
        self.draw = draw

    @property
    def draw(self) -> Draw:
        """The stretch that the next loader draws."""
        return self._draw

    @draw.setter
    def draw(self, draw: Draw) -> None:
        ranks = self.rank_world.num_ranks
        self._draw = draw
        self.batch_size = draw.global_batch_size // ranks
        self.predownload = 8 * self.batch_size
        self.length = draw.updates * self.batch_size

    @property
    def rows_by_source(self) -> dict[str, int]:
        """How many rows there are of each source."""
        return dict(zip(self.sources, self.samples_per_stream.tolist(), strict=True))

    def get_item(self, sample_id: int, retry: int = 7) -> dict:
        shard, _ = self.spanner[sample_id]
        source = self.sources[self.stream_per_shard[shard]]
        return super().get_item(sample_id, retry) | {"row": int(sample_id), "source": source}

    def __iter__(self) -> Iterator[dict]:
        for index, sample in enumerate(super().__iter__()):
            world = self.worker_world
            turn, row = divmod(index, self.batch_size)
            update = turn * world.workers_per_rank + world.worker_of_rank
            row_of_update = world.rank * self.batch_size + row
            yield sample | {"position": self.draw.start_row + update * self.draw.global_batch_size + row_of_update}

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict:
        """Nothing: the plan and the token clock say where the stream is."""
        return {}

    def load_state_dict(self, obj: dict) -> None:
        """Nothing to load."""

    def canonical_order(self, epoch: int) -> NDArray[np.int64]:
        """Row indices of one epoch of the stage, in order, each drawn as often as the mixture says."""
        return self.order.epoch(self.draw, epoch)


def whole_updates(stream: TrainingStream, world: World, _epoch: int, _sample_in_epoch: int) -> NDArray[np.int64]:
    """Deal the stretch `stream.draw` out: row indices [nodes, ranks of a node, workers of a rank, turns, rows].

    Update u goes to worker u mod workers of every rank as its turn u // workers; a worker without a last turn has -1.
    """
    draw = stream.draw
    updates = stream.order.updates(draw).reshape(draw.updates, world.num_ranks, stream.batch_size)
    workers = world.workers_per_rank
    turns = -(-draw.updates // workers)
    dealt = np.full((turns * workers, world.num_ranks, stream.batch_size), -1, np.int64)
    dealt[: draw.updates] = updates
    dealt = dealt.reshape(turns, workers, world.num_ranks, stream.batch_size).transpose(2, 1, 0, 3)
    return dealt.reshape(world.num_nodes, world.ranks_per_node, workers, turns, stream.batch_size)


batching_methods["whole_updates"] = whole_updates


def row_streams(
    sources: list[str], local: str | Path, remote: str | None, row_length: int, split: str
) -> list[CheckedStream]:
    """One Streaming stream a source."""
    folders = [f"{source}/{row_length}/{split}" for source in sources]
    return [
        CheckedStream(f"{local}/{folder}", f"{remote.rstrip('/')}/{folder}" if remote else None) for folder in folders
    ]
