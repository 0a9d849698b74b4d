"""Whole runs: the real `composer` command, real processes, real shards."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

from rotary_foundry import compile_plan, load_model, load_recipe
from rotary_foundry.runs.run_folder import RunFolder
from tests.command import output_of, rotary_foundry

from .conftest import ONE_THREAD, REPOSITORY, WORDS
from .runs import assert_same_run, digests


def test_a_run_follows_its_plan_to_the_end(tiny, undisturbed):
    plan = compile_plan(load_recipe(tiny.recipe))
    records = RunFolder(undisturbed).records(RunFolder(undisturbed).metrics)
    assert [record["batch"] for record in records] == list(range(1, plan.total_updates + 1))
    token = 0
    for record in records:
        position = plan.at(token)
        assert (record["stage"], record["rows"], record["row_length"], record["rope_theta"], record["lr"]) == (
            position.stage,
            position.rows,
            position.row_length,
            position.knobs["rope_theta"],
            position.lr,
        )
        assert {name: record[name] for name in position.knobs} == position.knobs
        token += position.rows * position.row_length
        assert record["token"] == token
        assert 0 < record["real_tokens"] <= position.rows * position.row_length
    assert token == plan.total_tokens
    assert json.loads((undisturbed / "plan.json").read_text()) == plan.to_json()


@pytest.mark.long  # in the others the ranks are forked, which saves the imports (tests/forked_composer.py)
def test_the_real_command_does_what_the_forked_ranks_do(tiny, undisturbed):
    run = tiny.launch_anew("run_name=by-command")
    assert run.returncode == 0, run.stderr[-4000:]
    assert_same_run(tiny.folder / "runs/by-command", undisturbed)


def test_a_run_learns_and_is_evaluated_at_the_end_of_every_stage(undisturbed):
    records = RunFolder(undisturbed).records(RunFolder(undisturbed).metrics)
    assert records[-1]["loss"] < 0.8 * records[0]["loss"]
    evaluations = RunFolder(undisturbed).records(RunFolder(undisturbed).evaluations)
    assert [record["stage"] for record in evaluations] == ["pretrain", "extend", "decay"]
    assert [record["rope_theta"] for record in evaluations[:2]] == [10_000, 160_000]
    assert evaluations[-1]["loss"] < evaluations[0]["loss"] < 6.2
    assert all(0 < record["masked_accuracy"] < 1 for record in evaluations)


def test_every_update_records_the_shares_of_tokens_asked_for_and_drawn_in_its_stage(undisturbed):
    records = RunFolder(undisturbed).records(RunFolder(undisturbed).metrics)
    for record in records:
        assert sum(record["tokens_by_source"].values()) == record["real_tokens"]
    last = {record["stage"]: record for record in records}
    assert last["decay"]["asked"] == {"one": 0.3, "two": 0.7}
    for stage, record in last.items():
        of_stage = [line["tokens_by_source"].get("one", 0) for line in records if line["stage"] == stage]
        tokens = sum(line["real_tokens"] for line in records if line["stage"] == stage)
        assert record["drawn"]["one"] == pytest.approx(sum(of_stage) / tokens)
        assert record["drawn"]["one"] == pytest.approx(record["asked"]["one"], abs=0.15)  # of a few rows


def test_a_run_keeps_digests_of_the_rows_that_it_draws_from(undisturbed):
    kept = json.loads((undisturbed / "rows.json").read_text())
    assert list(kept) == [f"{source}/{length}/train" for length in (64, 256) for source in ("one", "two")]
    assert len(set(kept.values())) == 4


def test_scheduled_knobs_move_at_every_update_of_their_stage_and_at_no_other(undisturbed):
    records = RunFolder(undisturbed).records(RunFolder(undisturbed).metrics)
    for knob, moving in (("local_rope_theta", "extend"), ("mlm_probability", "decay")):
        for stage in ("pretrain", "extend", "decay"):
            values = [record[knob] for record in records if record["stage"] == stage]
            assert len(set(values)) == (len(values) if stage == moving else 1)


def test_a_run_that_ends_well_leaves_nothing_in_the_temporary_folder(tiny, tmp_path):
    """mosaicml/streaming#893: "it leaves garbage around the file system after every run"."""
    run = tiny.launch("run_name=clean", "data.num_workers=1", TMPDIR=str(tmp_path))
    assert run.returncode == 0, run.stderr[-4000:]
    assert [path.name for path in tmp_path.iterdir() if "torchinductor" not in path.name] == []


def test_every_rank_keeps_a_log(undisturbed):
    assert sorted(path.name for path in (undisturbed / "logs").iterdir()) == ["rank0.log", "rank1.log"]


def test_relaunching_a_finished_run_says_so_and_changes_nothing(tiny, undisturbed):
    before = (undisturbed / "metrics.jsonl").read_bytes()
    run = tiny.launch()
    assert run.returncode == 0
    assert "finished" in run.stdout
    assert (undisturbed / "metrics.jsonl").read_bytes() == before


def test_other_ranks_workers_microbatches_and_loaders_see_the_same_rows_and_masks(alone, undisturbed):
    assert digests(alone) == digests(undisturbed)


def test_ranks_that_differ_by_a_row_see_the_same_rows_and_masks(tiny, undisturbed):
    run = tiny.launch("run_name=three", ranks=3)
    assert run.returncode == 0, run.stderr[-4000:]
    assert digests(tiny.folder / "runs/three") == digests(undisturbed)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("stages.pretrain.row_lenght=3", "did you mean 'row_length'?"),
        (
            "stages.extend.global_train_batch_size=1",
            "1 rows per update are fewer than the 2 processes; set at least 2",
        ),
        (
            "objective={name: multi_task, combine: mean, rows_per_block: 1, mlm_probability: 0.3, "
            "eval_mlm_probability: 0.3, mask_share: 0.8, random_share: 0.1}",
            "'objective.rows_per_block': 1 rows of a task cannot be split over 2 processes; set a multiple of 2",
        ),
        ("data.local=nowhere", "nowhere/tokenizer: no tokenizer.json there; prepare the data first"),
        ("stages.pretrain.row_length=128", "one/128/train/manifest.json: no such file"),
        ("model.vocab_size=64", "token ids do not fit the model's embedding"),
        ("init_from=runs/absent", "'init_from': runs/absent: no such file or folder"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(tiny, override, says):
    refused = tiny.launch_rank(0, "run_name=refused", override)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ")
    assert says in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (tiny.folder / "runs/refused").exists()


def test_another_rank_speaks_only_after_the_first_had_time_to(tiny):
    started = time.monotonic()
    refused = tiny.launch_rank(1, "run_name=refused", "seed=x")
    assert time.monotonic() - started > 10
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ")


@pytest.mark.long  # as all that starts Composer's launcher anew
def test_composer_passes_a_refusal_on(tiny):
    run = tiny.launch_anew("run_name=refused", "seed=x")
    assert run.returncode != 0
    assert sum(line.startswith("error: ") for line in run.stderr.splitlines()) == 1
    assert "Traceback" not in run.stdout + run.stderr


DIES_AMID_IMPORTS = """
import os, runpy, signal, sys

class Dying:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        print("signalled", flush=True)

class Finder:
    def find_spec(self, name, *_):
        if signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
            sys.meta_path.remove(self)
            Dying()

sys.meta_path.insert(0, Finder())
runpy.run_path("launch", run_name="__main__")
"""


def test_a_sigterm_amid_the_imports_ends_a_rank_that_holds_the_lock(tiny):
    """Composer's handler raises SystemExit, which Python drops within a `__del__`: the rank trained on."""
    environment = os.environ | ONE_THREAD | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    command = [sys.executable, "-c", DIES_AMID_IMPORTS, str(tiny.recipe), "run_name=signalled"]
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=280)
    assert ended.returncode == 128 + signal.SIGTERM
    assert ended.stdout == "signalled\n"
    assert "Traceback" not in ended.stderr
    assert not (tiny.folder / "runs/signalled/lock.json").exists()


def test_checkpoints_of_which_none_is_complete_are_never_taken_for_a_fresh_start(tiny):
    (tiny.folder / "runs/torn/checkpoints/ba2").mkdir(parents=True)
    run = tiny.launch("run_name=torn", ranks=1)
    assert run.returncode != 0
    assert "none of them complete" in run.stderr


def test_an_export_is_plain_transformers_with_the_training_models_logits(tiny, undisturbed, tmp_path):
    out = tmp_path / "export"
    output_of("export", undisturbed, out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    theirs = AutoModelForMaskedLM.from_pretrained(out).eval()
    assert theirs.config.rope_parameters["full_attention"]["rope_theta"] == 160_000
    assert theirs.config.max_position_embeddings == 256
    text = " ".join(WORDS * 4)
    batch = tokenizer(text, return_tensors="pt")
    input_ids, cu_seqlens = batch["input_ids"][0], torch.tensor([0, batch["input_ids"].shape[1]], dtype=torch.int32)
    checkpoint = RunFolder(undisturbed).newest_checkpoint().folder
    with torch.no_grad():
        expected = theirs(**batch).logits[0]
        for path in (checkpoint, undisturbed, out):
            torch.testing.assert_close(load_model(path)(input_ids, cu_seqlens), expected, rtol=0, atol=1e-4)
    fill = pipeline("fill-mask", model=str(out), device="cpu")
    assert len(fill(f"{WORDS[0]} [MASK] {WORDS[1]}")) == 5


def test_a_checkpoint_of_stage_one_is_exported_with_the_theta_it_was_trained_with(tiny, undisturbed, tmp_path):
    end_of_stage_one = RunFolder(undisturbed).records(RunFolder(undisturbed).evaluations)[0]["batch"]
    output_of("export", undisturbed / f"checkpoints/ba{end_of_stage_one}", tmp_path / "export")
    assert load_model(tmp_path / "export").knobs["rope_theta"] == 10_000


def test_the_summary_names_every_stage_with_its_held_out_loss(undisturbed):
    output = output_of("summary", undisturbed)
    for record in RunFolder(undisturbed).records(RunFolder(undisturbed).evaluations):
        assert f"{record['loss']:.3f}" in output
    assert "Unigram entropy" in output


def test_the_summary_of_an_exported_run_fills_masks_in_held_out_text_or_says_why_not(undisturbed, tmp_path):
    copied = shutil.copytree(undisturbed, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    output_of("export", undisturbed, copied / "export")
    printed = output_of("summary", copied)
    assert printed.count("in the text: ") == printed.count("[MASK]") == 3
    data = tmp_path / "data"
    shutil.copytree(load_recipe(copied / "recipe.yaml").data.local, data, ignore=shutil.ignore_patterns("validation"))
    recipe = OmegaConf.load(copied / "recipe.yaml")
    recipe.data.local = str(data)
    OmegaConf.save(recipe, copied / "recipe.yaml")
    printed = output_of("summary", copied)
    assert "Unigram entropy" in printed
    assert f"No masks are filled: {data}: no held-out rows there" in " ".join(printed.split())


def test_the_summary_of_a_run_whose_data_are_gone_says_so_and_prints_the_rest(undisturbed, tmp_path):
    copied = shutil.copytree(undisturbed, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    output_of("export", undisturbed, copied / "export")
    recipe = OmegaConf.load(copied / "recipe.yaml")
    recipe.data.local = "data/gone"
    OmegaConf.save(recipe, copied / "recipe.yaml")
    started_in = json.loads((undisturbed / "environment.json").read_text())["working_directory"]
    there = "data/gone" if started_in == os.getcwd() else f"{started_in}/data/gone"
    printed = " ".join(output_of("summary", copied).split())
    for record in RunFolder(undisturbed).records(RunFolder(undisturbed).evaluations):
        assert f"{record['loss']:.3f}" in printed
    assert f"The unigram entropy is unknown: {there}/statistics.json: no such file" in printed
    assert f"No masks are filled: {os.path.abspath(there)}: no such folder" in printed


def test_nothing_to_export_is_one_clear_line(tmp_path):
    failed = rotary_foundry("export", tmp_path / "absent", tmp_path / "export")
    assert failed.returncode == 2
    assert failed.stderr == f"error: {tmp_path}/absent: no such file or folder\n"
