"""Room in /dev/shm and on disks: on tmpfs of the sizes that the doctor asks for."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rotary_foundry.doctor.disk_space import check_data_disk, check_runs_disk, check_shm, loaders_need
from rotary_foundry.doctor.finding import BAD, GOOD
from rotary_foundry.recipe import compile_plan
from rotary_foundry.recipe.cost import cost
from rotary_foundry.runs.recipes import load_recipe
from rotary_foundry.utils.wording import size

from .conftest import REPOSITORY, on_own_machine, only

BASE = load_recipe(REPOSITORY / "yamls/main/base.yaml")
# A rank's loader, in a /dev/shm of first all, then half of what the doctor asks for; each by a fork of its own.
DRAW = """
import json, os, time
from functools import partial
from pathlib import Path
from torch.utils.data import DataLoader
from rotary_foundry.data.batches import collate
from rotary_foundry.data.corpus import TokenizerFacts
from rotary_foundry.data.row_preparation import TrainingPrepared
from rotary_foundry.data.stream import Draw, TrainingStream
from rotary_foundry.recipe import compile_plan
from rotary_foundry.runs.recipes import load_recipe
from tests.data import conftest

conftest.ROW_LENGTH = 4096
conftest.write_rows(Path("{folder}"), rows=dict(code=64))
recipe = load_recipe("{recipe}")
facts = TokenizerFacts(512, dict(unk_token=0, cls_token=1, sep_token=2, pad_token=3, mask_token=4), "")
prepare = TrainingPrepared(recipe.objective_of("pretrain"), facts, 17, compile_plan(recipe).segments[0])
collate_rows = partial(collate, prepare=prepare, row_length=4096, vocab_size=512)

def draw():
    rows = TrainingStream(["code"], "{folder}", None, 4096, 1 << 18, Draw(17, 0, None, 0, 8, 32))
    most = 0
    for batch in DataLoader(rows, batch_size=32, num_workers=2, collate_fn=collate_rows, timeout=30):
        time.sleep(0.5)  # the workers come as far ahead as they may
        room = os.statvfs("/dev/shm")
        most = max(most, (room.f_blocks - room.f_bfree) * room.f_frsize)
    return most

told = dict()
for name, size in (("all", {need}), ("half", {need} // 2)):
    assert os.system(f"mount -o remount,size={{size}} /dev/shm") == 0
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            os.write(write, str(draw()).encode())
        finally:
            os._exit(0)
    os.close(write)
    told[name] = os.fdopen(read).read()
print(json.dumps(told))
"""


@pytest.mark.long
def test_a_loader_draws_in_as_much_shared_memory_as_the_doctor_asks_for_and_dies_in_half_of_it(
    recipe_file, recipe, tmp_path
):
    stage = replace(
        recipe.stages["pretrain"], row_length=4096, global_train_batch_size=32, duration=f"{8 * 32 * 4096}tok"
    )
    recipe = replace(recipe, stages={"pretrain": stage}, data=replace(recipe.data, num_workers=2))
    need = loaders_need(recipe, compile_plan(recipe), nodes=1)
    code = DRAW.format(folder=tmp_path / "rows", need=need, recipe=recipe_file)
    run = on_own_machine({"/dev/shm": "64m"}, [sys.executable, "-c", code], TMPDIR=str(tmp_path))
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout.splitlines()[-1])
    assert 0.8 * need < int(told["all"]) <= need
    assert told["half"] == ""


def test_a_containers_64_mb_are_too_little_for_base_and_the_remedy_is_enough(monkeypatch):
    plan = compile_plan(BASE)
    need = loaders_need(BASE, plan, 1)
    assert need > 64 * 2**20
    assert loaders_need(BASE, plan, 8) < need / 4  # eight nodes have an eighth of the rows each
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"free": 64 * 2**20}))
    found = only(check_shm(BASE, plan, 1, 8))
    assert found.mark == BAD
    assert found.said.startswith("67.1 MB free; needed: 481 MB for the loaders")
    gib = int(found.remedy.split("--shm-size=")[1].split("g ")[0])
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"free": gib * 2**30}))
    assert only(check_shm(BASE, plan, 1, 8)).mark == GOOD


def test_on_gpus_the_workers_of_an_evaluation_want_room_beside_those_that_train(monkeypatch):
    plan = compile_plan(BASE)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    a_row = loaders_need(BASE, plan, 1) / (2 * BASE.data.num_workers + 1) / 4608
    found = only(check_shm(BASE, plan, 1, 8))
    both = loaders_need(BASE, plan, 1) + 8 * (2 * 2 + 1) * 96 * a_row  # ranks, batches of two workers, rows, bytes
    assert f"needed: {size(both)} for the loaders and 1 GB for NCCL" in found.said


def test_loaders_without_workers_want_no_room(recipe_file):
    recipe = load_recipe(recipe_file, ["data.num_workers=0"])
    assert loaders_need(recipe, compile_plan(recipe), 1) == 0


def test_checkpoints_that_are_there_already_want_no_room_again(recipe_file, tmp_path):
    recipe = load_recipe(recipe_file, [f"runs_folder={tmp_path}", "save_num_checkpoints_to_keep=2"])
    plan = compile_plan(recipe)
    one = cost(recipe, plan).checkpoint_bytes
    before = only(check_runs_disk(recipe, plan))
    assert f"needed: {size(3 * one)} (3 checkpoints of" in before.said
    part = tmp_path / "small/checkpoints/ba2/__0_0.distcp"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * one)
    (part.parent / "__1_0.distcp").symlink_to("nowhere")  # as one that a live run removes when it has just been seen
    after = only(check_runs_disk(recipe, plan))
    assert f"needed: {size(2 * one)}" in after.said
    assert f"{size(one)} of them here already" in after.said


def test_checkpoints_by_the_clock_want_room_for_as_many_as_are_kept(recipe_file, tmp_path):
    recipe = load_recipe(
        recipe_file, [f"runs_folder={tmp_path}", "save_num_checkpoints_to_keep=9", "save_interval=30m"]
    )
    found = only(check_runs_disk(recipe, compile_plan(recipe)))
    assert "(10 checkpoints of" in found.said  # the run has fewer updates with one due at a token


def test_shards_that_are_decompressed_already_want_no_room_again(recipe, tmp_path):
    local = Path(shutil.copytree(recipe.data.local, tmp_path / "data"))
    recipe = replace(recipe, data=replace(recipe.data, local=str(local)))
    shards = {
        index.parent / shard["raw_data"]["basename"]: shard["raw_data"]["bytes"]
        for index in local.glob("*/*/*/index.json")
        for shard in json.loads(index.read_text())["shards"]
    }
    needed = sum(shards.values())
    assert f"needed: {size(needed)}" in only(check_data_disk(recipe, local)).said
    for path in list(shards)[: len(shards) // 2]:
        path.touch()
        needed -= shards[path]
    assert f"needed: {size(needed)}" in only(check_data_disk(recipe, local)).said
    limited = replace(recipe, data=replace(recipe.data, remote="s3://bucket/data", cache_limit="1tb"))
    assert only(check_data_disk(limited, local)).mark == BAD  # a terabyte for each of two row lengths
