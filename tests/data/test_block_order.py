"""The order of a multi-task stage: exact shares, each row alike often, and the same blocks for any number of ranks."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from streaming.base.world import World

from rotary_foundry.data.block_order import BlockOrder, order_of
from rotary_foundry.data.order import Draw
from rotary_foundry.data.stream import WorkerRows

SHARDS = {"code": np.array([30, 7]), "docs": np.array([11]), "other": np.array([50]), "web": np.array([200, 1, 99])}
WEIGHTS = {"code": 2.0, "docs": 1.0, "web": 5.0}  # the other is no task of the stage
BOUNDS = np.cumsum([shards.sum() for shards in SHARDS.values()])
BLOCK = 12


def order(weights: dict = WEIGHTS, seed: int = 17, stage: int = 0) -> BlockOrder:
    return BlockOrder(SHARDS, 64, seed, stage, weights, BLOCK)


def tasks_of(rows: np.ndarray) -> np.ndarray:
    """The task of each row, as an index into SHARDS."""
    return np.searchsorted(BOUNDS, rows, "right")


@given(st.dictionaries(st.sampled_from(list(WEIGHTS)), st.floats(0.2, 9), min_size=1), st.integers(0, 2**31), st.data())
def test_every_block_is_of_one_task_and_the_shares_of_an_epoch_are_exact(weights, seed, data):
    blocks = order(weights, seed)
    epoch = data.draw(st.integers(0, 9))
    tasks = tasks_of(blocks.stretch(epoch * blocks.epoch_rows, blocks.epoch_rows)).reshape(-1, BLOCK)
    assert (tasks == tasks[:, :1]).all()
    counts = Counter(tasks[:, 0].tolist())
    assert sum(counts.values()) == sum(-(-SHARDS[task].sum() // BLOCK) for task in weights)
    for index, task in enumerate(SHARDS):
        assert abs(counts[index] - len(tasks) * weights.get(task, 0) / sum(weights.values())) < 1


@pytest.mark.parametrize("blocks", [1, 7, 33, 90])
def test_draws_of_a_tasks_rows_differ_by_at_most_one_after_any_block(blocks):
    drawn = np.bincount(order().stretch(0, blocks * BLOCK), minlength=BOUNDS[-1])
    for of_task in np.split(drawn, BOUNDS[:-1]):
        assert of_task.max() - of_task.min() <= 1


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8))
def test_any_cut_of_the_order_gives_the_same_rows(lengths):
    whole = order().stretch(0, sum(lengths))
    starts = np.cumsum(lengths) - lengths
    pieces = [order().stretch(start, length) for start, length in zip(starts, lengths, strict=True)]
    assert np.concatenate(pieces).tolist() == whole.tolist()
    again = order()
    assert [again[place] for place in reversed(range(len(whole)))][::-1] == whole.tolist()


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("workers", [1, 3])
def test_an_update_has_the_same_blocks_and_rows_for_any_ranks_and_workers(ranks, workers):
    draw = Draw(17, 0, WEIGHTS, 24, 20, 4 * BLOCK, rows_per_block=BLOCK)  # over the end of an epoch
    made = order_of(SHARDS, 64, draw)
    whole = made.stretch(24, 20 * 4 * BLOCK).reshape(20, 4, BLOCK)
    found: dict[tuple[int, int], list[int]] = {}
    of_ranks: dict[tuple[int, int], set[int]] = {}
    for worker in range(ranks * workers):
        rows = WorkerRows(made, draw, World(1, ranks, workers, worker))
        for index in range(len(rows)):
            update, place = divmod(rows.position(index) - 24, 4 * BLOCK)
            found.setdefault((update, place // BLOCK), []).append(rows[index])
            of_rank = of_ranks.setdefault((update, index % rows.rows_a_rank), set())
            of_rank.add(int(tasks_of(np.array(rows[index]))))
    for (update, block), rows in found.items():
        assert sorted(rows) == sorted(whole[update, block])
    assert len(found) == 20 * 4
    assert all(len(tasks) == 1 for tasks in of_ranks.values())  # the n-th row of every rank is of one task


def test_stages_epochs_and_seeds_have_orders_of_their_own():
    rows = order().epoch_rows
    stretches = {
        tuple(order(seed=seed, stage=stage).stretch(start, rows).tolist())
        for seed in (17, 18)
        for stage in (0, 1)
        for start in (0, rows)
    }
    assert len(stretches) == 8


def test_the_order_is_the_one_that_runs_have_begun_with():
    made = BlockOrder({"a": np.array([5, 3]), "b": np.array([7])}, 8, 17, 0, {"a": 1.0, "b": 3.0}, 4)
    assert made.stretch(0, 20).tolist() == [*(0, 1, 4, 3, 8, 9, 12, 11, 14, 13, 10, 9, 13, 11, 10, 8, 7, 5, 6, 2)]
