"""Memory for the loaders: of machines and control groups that a test makes up."""

from types import SimpleNamespace

import pytest

from rotary_foundry.data.corpus import shard_folders
from rotary_foundry.data.shard_index import read_index
from rotary_foundry.doctor import host_memory
from rotary_foundry.doctor.disk_space import evaluation_needs, loaders_need
from rotary_foundry.doctor.finding import BAD, GOOD
from rotary_foundry.doctor.host_memory import RANK_BYTES_A_SHARD, WORKER_BYTES_A_SHARD, check_memory
from rotary_foundry.recipe import compile_plan
from rotary_foundry.utils.wording import size

from .conftest import only


def machine(monkeypatch, free: float) -> None:
    monkeypatch.setattr(host_memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=int(free)))


def shards_of(recipe) -> int:
    return sum(len(read_index(f"{recipe.data.local}/{folder}/index.json").rows) for folder, _ in shard_folders(recipe))


@pytest.mark.parametrize("on_gpus", [False, True])
def test_what_the_loaders_take_grows_with_ranks_and_workers_and_is_compared_with_what_is_free(
    recipe, tmp_path, monkeypatch, on_gpus
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: on_gpus)
    plan, shards = compile_plan(recipe), shards_of(recipe)
    batches = loaders_need(recipe, plan, 2) + on_gpus * evaluation_needs(recipe, plan, 8)
    needed = 8 * shards * (RANK_BYTES_A_SHARD + WORKER_BYTES_A_SHARD) + batches  # of one worker each
    for free, mark in ((needed - 1, BAD), (needed + 1, GOOD)):
        machine(monkeypatch, free)
        found = only(check_memory(recipe, plan, 2, 8, group=tmp_path))
        assert found.mark == mark and (found.remedy != "") == (mark == BAD)
        assert f"the loaders of 8 ranks with 1 workers each take {size(needed)}: " in found.said
        assert f" for {shards:,} shards (the largest source is " in found.said


@pytest.mark.parametrize(("limit", "mark"), [("max", GOOD), ("1000000", BAD), ("9000000000", GOOD)])
def test_a_container_has_no_more_than_its_control_group(recipe, tmp_path, monkeypatch, limit, mark):
    machine(monkeypatch, 64e9)
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("999990\n")
    assert only(check_memory(recipe, compile_plan(recipe), 1, 8, group=tmp_path)).mark == mark
