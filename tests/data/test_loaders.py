"""Held-out rows are evaluated exactly once, whatever the number of ranks."""

import re
import shutil
import time
from itertools import islice

import pytest
import torch

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


def assert_equal_batches(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        same = torch.equal(found[key], value) if isinstance(value, torch.Tensor) else found[key] == value
        assert same, key


def test_on_a_gpu_workers_load_the_held_out_rows_and_the_batches_are_the_same_in_the_same_order(tmp_path, monkeypatch):
    write_rows(tmp_path, "validation", {"code": 9, "docs": 4})
    overrides = [f"data.local={tmp_path}", "data.sources=[code, docs]", "stages.decay.mixture=null"]
    overrides += [f"stages.{stage}.row_length={ROW_LENGTH}" for stage in ("pretrain", "extend", "decay")]
    overrides += ["stages.pretrain.device_train_microbatch_size=2", "data.num_workers=8", "dist_timeout=60"]
    data = loaders.RunData(load_recipe(REPOSITORY / "yamls/main/nano.yaml", overrides), TOKENIZER)
    expected = list(on_cpu := data.eval_loader("pretrain"))
    assert (on_cpu.num_workers, on_cpu.pin_memory) == (0, False)
    monkeypatch.setattr(loaders.torch.cuda, "is_available", lambda: True)
    on_gpu = data.eval_loader("pretrain")
    monkeypatch.undo()
    assert (on_gpu.num_workers, on_gpu.pin_memory, on_gpu.timeout) == (2, True, 60)
    on_gpu.pin_memory = False  # there is no GPU that could
    found = list(on_gpu)
    assert len(found) == len(expected) == len(on_gpu) == 7  # which two workers do not divide
    for batch, other in zip(found, expected, strict=True):
        assert_equal_batches(batch, other)


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
    overrides += ["stages.pretrain.global_train_batch_size=8"]
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


def loader_at(folder, token: int, *overrides: str):
    """The recipe's training loader at a token of its plan, and the plan."""
    lengths = [f"stages.{stage}.row_length={ROW_LENGTH}" for stage in ("pretrain", "extend", "decay")]
    updates = ["stages.pretrain.batch_size_ramp=null", "stages.pretrain.global_train_batch_size=8"]
    given = [f"data.local={folder}", "data.num_workers=0", *updates, *lengths, *overrides]
    recipe = load_recipe(REPOSITORY / "yamls/main/nano.yaml", given)
    return iter(loaders.RunData(recipe, TOKENIZER).train_loader(compile_plan(recipe), token))


def test_a_resume_near_the_end_of_a_long_run_begins_as_fast_as_the_run_itself(row_folder):
    """Others replay the data up to there, or give up the order of it (asafam/HebrewModernBERT@bff722d)."""
    overrides = ["data.sources=[code, docs, web]", "stages.decay.mixture=null", "stages.pretrain.t_warmup=0tok"]
    overrides += ["stages.pretrain.duration=1_000_000_000_000tok"]
    seconds = {}
    for share in (0.0, 0.9, 0.0, 0.9):  # the second pair without what is made once
        began = time.perf_counter()
        next(loader_at(row_folder, int(share * 1e12) // 256 * 256, *overrides))
        seconds[share] = time.perf_counter() - began
    assert seconds[0.9] < seconds[0.0] + 2


@pytest.mark.parametrize("passes", [1, 2, 7])
def test_a_source_of_three_rows_that_is_drawn_again_and_again_goes_on_in_any_pass(tmp_path, passes):
    """A resume after the first epoch failed where streams were repeated (streaming#869)."""
    write_rows(tmp_path, rows={"code": 300, "few": 3})
    overrides = ["data.sources=[code, few]", "stages.pretrain.duration=1_000_000tok", "stages.pretrain.t_warmup=0tok"]
    overrides += [f"stages.{stage}.mixture={{code: 0.5, few: 0.5}}" for stage in ("pretrain", "decay")]
    update = -(-passes * 3 // 4)  # each has eight rows, four of `few`

    def digests(first: int) -> list[str]:
        batches = loader_at(tmp_path, first * 8 * ROW_LENGTH, *overrides)
        return [update_digest(batch["row_digests"]) for batch in islice(batches, 12 - first)]

    assert digests(update) == digests(0)[update:]


def test_a_row_that_is_corrupt_amid_a_source_ends_the_run_by_its_place_though_workers_read_ahead(tmp_path):
    """An exception in the background of a packing loader was a silent deadlock (indic-modernBERT, learnings § 10)."""
    write_rows(tmp_path, rows={"code": 300})
    folder = tmp_path / "code" / str(ROW_LENGTH) / "train"
    shards = sorted(folder.glob("shard.*"))
    damaged = shards[len(shards) // 2]
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 0xFF
    damaged.write_bytes(content)
    began = time.perf_counter()
    overrides = ["data.sources=[code]", "stages.decay.mixture=null", "data.num_workers=2", "dist_timeout=60"]
    with pytest.raises(DataError, match=damaged.name):
        for _ in loader_at(tmp_path, 0, *overrides):
            pass
    assert time.perf_counter() - began < 30


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
