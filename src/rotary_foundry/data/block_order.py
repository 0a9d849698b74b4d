"""The order of a multi-task stage: blocks of rows of one task, as a pure function of the index files and the weights.

Every rank takes an equal part of every block, so all ranks work on the same task at the same time, and an update has a
gradient of each of its tasks.

- Blocks are drawn in epochs. An epoch has about as many blocks as the rows of the tasks fill once. Each task has its
  share of the blocks, rounded by largest remainder. Each epoch has a generator of its own that shuffles its blocks.
- The n-th block of a task holds rows n·r to (n + 1)·r of the task's own StageOrder, in which passes follow each other.
  So each row of a task is drawn as often as any other, or once more.

The blocks of two epochs are kept in memory: 6 bytes per block, 75 MB per epoch of 150 million rows in blocks of 12.
"""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from rotary_foundry.data.order import Draw, StageOrder, rows_an_epoch

_TASKS = 3  # the purpose of a generator, in addition to those of StageOrder


class BlockOrder:
    """The rows of a multi-task stage by position, with the interface of StageOrder.

    Args:
        shard_rows, shuffle_block_size, seed, stage_index: as for StageOrder; a source is a task.
        weights: by task; tasks without one are not drawn.
        rows_per_block: rows per block, all of one task.
    """

    def __init__(
        self,
        shard_rows: Mapping[str, NDArray[np.int64]],
        shuffle_block_size: int,
        seed: int,
        stage_index: int,
        weights: Mapping[str, float],
        rows_per_block: int,
    ):
        rows = {task: int(shards.sum()) for task, shards in shard_rows.items()}
        self.blocks_an_epoch = blocks_an_epoch(rows, weights, rows_per_block)
        self.rows_per_block = rows_per_block
        self.rows_an_epoch = [blocks * rows_per_block for blocks in self.blocks_an_epoch]
        self.epoch_rows = sum(self.rows_an_epoch)
        self._orders = [
            StageOrder(shard_rows, shuffle_block_size, seed, stage_index, {task: 1.0}) if task in weights else None
            for task in shard_rows
        ]
        self._key = seed, stage_index, _TASKS
        self._epoch = lru_cache(2)(self._epoch)

    def __getitem__(self, position: int) -> int:
        """Return the index of the row at a position."""
        return int(self.stretch(position, 1)[0])

    def stretch(self, position: int, rows: int) -> NDArray[np.int64]:
        """Return the indices of `rows` rows from a position on, int64 [rows]."""
        parts = [np.empty(0, np.int64)]
        while rows > 0:
            block, offset = divmod(position, self.rows_per_block)
            taken = min(rows, self.rows_per_block - offset)
            task, number = self._task(block)
            parts.append(self._orders[task].stretch(number * self.rows_per_block + offset, taken))
            position, rows = position + taken, rows - taken
        return np.concatenate(parts)

    def _task(self, block: int) -> tuple[int, int]:
        """Return the task of a block of the stage, and the number of blocks of this task before it."""
        epoch, place = divmod(block, sum(self.blocks_an_epoch))
        tasks, numbers = self._epoch(epoch)
        task = int(tasks[place])
        return task, epoch * self.blocks_an_epoch[task] + int(numbers[place])

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int16], NDArray[np.int32]]:
        """Return the task of each block of an epoch, and the number of blocks of this task before it in the epoch."""
        counts = np.array(self.blocks_an_epoch)
        tasks = np.repeat(np.arange(len(counts), dtype=np.int16), counts)
        np.random.default_rng((*self._key, epoch, 0)).shuffle(tasks)  # five numbers, as StageOrder's
        numbers = np.empty(len(tasks), np.int32)
        numbers[np.argsort(tasks, kind="stable")] = np.arange(len(tasks)) - np.repeat(counts.cumsum() - counts, counts)
        return tasks, numbers


def blocks_an_epoch(rows: Mapping[str, int], weights: Mapping[str, float], rows_per_block: int) -> list[int]:
    """Return the blocks per epoch of each task, given the number of rows of each."""
    return rows_an_epoch({task: -(-there // rows_per_block) for task, there in rows.items()}, dict(weights))


def order_of(
    shard_rows: Mapping[str, NDArray[np.int64]], shuffle_block_size: int, draw: Draw
) -> StageOrder | BlockOrder:
    """Make the order of the stage of a draw; the arguments are those of StageOrder."""
    arguments = shard_rows, shuffle_block_size, draw.seed, draw.stage_index, draw.mixture
    return StageOrder(*arguments) if draw.rows_per_block is None else BlockOrder(*arguments, draw.rows_per_block)
