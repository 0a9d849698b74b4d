"""Held-out rows are evaluated exactly once, whatever the number of ranks."""

import re
import shutil
import time

import pytest

from rotary_foundry import compile_plan, load_recipe
from rotary_foundry.data import loaders
from rotary_foundry.data.batches import num_rows, num_tokens, update_digest
from rotary_foundry.data.checked_shards import CheckedShards
from rotary_foundry.data.corpus import TokenizerFacts
from rotary_foundry.data.row_preparation import HeldOutPrepared
from rotary_foundry.data.stream import row_streams
from rotary_foundry.objectives.masked_lm import MaskedLM
from rotary_foundry.utils.errors import DataError

from .conftest import REPOSITORY, ROW_LENGTH, write_rows

ROLES = dict(zip(("unk_token", "cls_token", "sep_token", "pad_token", "mask_token"), range(5), strict=True))
TOKENIZER = TokenizerFacts(512, ROLES, "")
SHARES = {"eval_mlm_probability": 0.15, "mask_share": 0.8, "random_share": 0.1}


@pytest.fixture(scope="module")
def held_out(tmp_path_factory) -> CheckedShards:
    root = tmp_path_factory.mktemp("held_out")
    write_rows(root, "validation", {"code": 5, "docs": 2}, word_starts=True)
    return CheckedShards(streams=row_streams(["code", "docs"], root, None, ROW_LENGTH, "validation"), batch_size=2)


@pytest.mark.parametrize("whole_words", [False, True])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_every_held_out_row_is_predicted_on_exactly_one_rank(held_out, monkeypatch, world, whole_words):
    prepare = HeldOutPrepared(MaskedLM(0.3, **SHARES, whole_words=whole_words), TOKENIZER, 17)
    monkeypatch.setattr(loaders.dist, "get_world_size", lambda: world)
    digests, batches_a_rank = [], set()
    for rank in range(world):
        monkeypatch.setattr(loaders.dist, "get_global_rank", lambda rank=rank: rank)
        batches = list(loaders.HeldOutRows(held_out, prepare, ROW_LENGTH, rows_a_batch=2))
        batches_a_rank.add(len(batches))
        for batch in batches:
            assert num_rows(batch) <= 2
            if num_tokens(batch)["loss_generating"] >= 1:
                digests += batch["row_digests"]
    assert len(batches_a_rank) == 1  # a forward pass under FSDP takes all ranks
    monkeypatch.setattr(loaders.dist, "get_world_size", lambda: 1)
    monkeypatch.setattr(loaders.dist, "get_global_rank", lambda: 0)
    alone = [
        digest
        for batch in loaders.HeldOutRows(held_out, prepare, ROW_LENGTH, rows_a_batch=7)
        for digest in batch["row_digests"]
    ]
    assert sorted(digests) == sorted(alone)
    assert len(set(digests)) == 7


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_row_that_does_not_fit_is_one_line_from_any_process(row_folder, num_workers):
    """torch brings an error from a worker with the whole traceback for its message."""
    recipe = load_recipe(
        REPOSITORY / "yamls/main/nano.yaml",
        [
            f"data.local={row_folder}",
            "data.sources=[code, docs, web]",
            "stages.decay.mixture=null",
            f"data.num_workers={num_workers}",
            *(f"stages.{stage}.row_length={ROW_LENGTH}" for stage in ("pretrain", "extend", "decay")),
        ],
    )
    data = loaders.RunData(recipe, TokenizerFacts(300, {"mask_token": 4}, ""))
    with pytest.raises(DataError) as refused:
        next(iter(data.train_loader(compile_plan(recipe), 0)))
    assert re.fullmatch(r"row \d+ of the shards .* token id \d+, .* \[0, 300\); prepare .*", str(refused.value))


def test_a_worker_whose_batch_never_comes_ends_the_run_after_dist_timeout(row_folder, monkeypatch):
    monkeypatch.setattr(loaders, "collate", lambda *_, **__: time.sleep(4))
    overrides = [f"stages.{stage}.row_length={ROW_LENGTH}" for stage in ("pretrain", "extend", "decay")]
    overrides += [f"data.local={row_folder}", "data.num_workers=1", "dist_timeout=1"]
    recipe = load_recipe(REPOSITORY / "yamls/main/nano.yaml", overrides)
    with pytest.raises(RuntimeError, match="timed out after 1"):
        next(iter(loaders.RunData(recipe, TOKENIZER).train_loader(compile_plan(recipe), 0)))


@pytest.mark.parametrize("whole_words", ["false", "true"])
def test_an_updates_masks_are_the_same_for_any_number_of_workers_and_after_a_resume(tmp_path, whole_words):
    """While the mask rate moves."""
    write_rows(tmp_path, rows={"code": 40}, word_starts=True)
    moving = f"{{start: 0.9, end: 0.1, duration: {5 * 8 * ROW_LENGTH}tok}}"
    overrides = [f"data.local={tmp_path}", "data.sources=[code]", "stages.decay.mixture=null"]
    overrides += [f"objective.whole_words={whole_words}", "stages.pretrain.batch_size_ramp=null"]
    overrides += [f"stages.pretrain.mlm_probability={moving}"]
    overrides += [f"stages.{stage}.row_length={ROW_LENGTH}" for stage in ("pretrain", "extend", "decay")]
    found = []
    for workers, first in ((0, 0), (1, 0), (0, 3)):
        recipe = load_recipe(REPOSITORY / "yamls/main/nano.yaml", [*overrides, f"data.num_workers={workers}"])
        plan = compile_plan(recipe)
        batches = iter(loaders.RunData(recipe, TOKENIZER).train_loader(plan, first * 8 * ROW_LENGTH))
        found.append([update_digest(next(batches)["row_digests"]) for _ in range(first, 5)])
    whole, by_a_worker, resumed = found
    assert whole == by_a_worker and whole[3:] == resumed and len(set(whole)) == 5


def test_stages_of_one_row_length_each_get_batches_of_their_own_size(tmp_path):
    write_rows(tmp_path, "validation", {"code": 5, "docs": 2})
    sizes = {"pretrain": 4, "extend": 1, "decay": 3}
    recipe = load_recipe(
        REPOSITORY / "yamls/main/nano.yaml",
        [
            *(f"data.local={tmp_path}", "data.sources=[code, docs]", "stages.decay.mixture=null"),
            *(f"stages.{stage}.row_length={ROW_LENGTH}" for stage in sizes),
            *(f"stages.{stage}.device_train_microbatch_size={rows}" for stage, rows in sizes.items()),
        ],
    )
    data = loaders.RunData(recipe, TOKENIZER)
    for stage, rows in sizes.items():
        assert max(num_rows(batch) for batch in data.eval_loader(stage)) == rows


def test_a_stage_may_have_shorter_rows_than_the_one_before(row_folder):
    shorter = row_folder.parent / "shorter"
    shutil.copytree(row_folder, shorter, dirs_exist_ok=True)
    for source in ("code", "docs", "web"):
        shutil.copytree(shorter / source / str(ROW_LENGTH), shorter / source / "64", dirs_exist_ok=True)
    lengths = {"pretrain": 64, "extend": ROW_LENGTH, "decay": 64}
    recipe = load_recipe(
        REPOSITORY / "yamls/main/nano.yaml",
        [
            *(f"data.local={shorter}", "data.sources=[code, docs, web]", "stages.decay.mixture=null"),
            *(f"stages.{stage}.row_length={length}" for stage, length in lengths.items()),
        ],
    )
    data, plan = loaders.RunData(recipe, TOKENIZER), compile_plan(recipe)
    for start, stage in zip([0, *plan.stage_ends.values()], lengths, strict=False):
        batch = next(iter(data.train_loader(plan, start)))
        assert plan.at(start).stage == stage and batch["row_length"] == lengths[stage]
