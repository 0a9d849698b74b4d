"""Checkpoints by the clock: all ranks save at the updates of rank 0's clock, and no number depends on them."""

import datetime
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from composer.trainer import trainer
from composer.utils import dist
from torch.multiprocessing import ProcessExitedException

from rotary_foundry.runs.run_folder import complete_checkpoints
from tests.ranks import on_ranks

from .runs import Kill, assert_same_run, train_recipe

AT_TOKENS = {7, 12, 16, 20}  # the updates that the rollback names, and the ends of the stages


def train_by_the_clock(path: Path, overrides: list[str], seconds: list[float]) -> None:
    """Train by a clock that goes on by these seconds, one number a rank, whenever Composer reads it."""
    now, step = datetime.datetime(2026, 1, 1), datetime.timedelta(seconds=seconds[dist.get_global_rank()])

    class Clock:
        @staticmethod
        def now() -> datetime.datetime:
            nonlocal now
            now += step
            return now

    trainer.datetime = SimpleNamespace(datetime=Clock, timedelta=datetime.timedelta)
    train_recipe(path, [*overrides, "save_interval=1m"])


def saved(run: Path) -> list[int]:
    """Updates, and those of the abandoned stretch."""
    there = complete_checkpoints([*run.glob("checkpoints/ba*"), *run.glob("abandoned/*/ba*")])
    return sorted(checkpoint.batch for checkpoint in there)


def test_ranks_with_clocks_of_their_own_save_together_and_a_killed_run_ends_as_the_undisturbed_one(
    tiny, undisturbed, tmp_path, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    kill = f"callbacks={json.dumps({f'{Kill.__module__}.{Kill.__name__}': {'update': 10}})}"
    run = tiny.folder / "runs/by-the-clock"
    with pytest.raises(ProcessExitedException):
        on_ranks(2, tmp_path, train_by_the_clock, tiny.recipe, [f"run_name={run.name}", kill], [15.0, 1.0])
    by_the_clock = set(saved(run)) - AT_TOKENS
    assert by_the_clock and max(by_the_clock) > 7, "none that the clock alone decided is the newest"
    on_ranks(2, tmp_path, train_by_the_clock, tiny.recipe, [f"run_name={run.name}"], [40.0, 300.0])
    assert set(saved(run)) - AT_TOKENS - by_the_clock
    assert_same_run(run, undisturbed)
