"""Whole runs: the real `composer` command, real processes, real shards."""

import json
from pathlib import Path

import pytest
import torch

from encoder_foundry import compile_plan, load_recipe
from encoder_foundry.interop.checkpoints import load_weights
from encoder_foundry.run_folder import RunFolder, read_records

from .conftest import KILLED_LAUNCH

RUNG = 4  # updates at each ramp size of the tiny recipe


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_weights(RunFolder(run).newest_checkpoint().folder)


def digests(run: Path) -> list[str]:
    return [record["rows_digest"] for record in read_records(RunFolder(run).metrics)]


def test_a_run_follows_its_plan_to_the_end(tiny, undisturbed):
    plan = compile_plan(load_recipe(tiny.recipe))
    records = read_records(undisturbed / "metrics.jsonl")
    assert [record["batch"] for record in records] == list(range(1, plan.total_updates + 1))
    token = 0
    for record in records:
        position = plan.at(token)
        assert (record["stage"], record["rows"], record["row_length"], record["rope_theta"], record["lr"]) == (
            position.stage,
            position.rows,
            position.row_length,
            position.rope_theta_global,
            position.lr,
        )
        token += position.rows * position.row_length
        assert record["token"] == token
        assert 0.9 * token / record["batch"] < token  # a line an update, none of them empty
        assert 0 < record["real_tokens"] <= position.rows * position.row_length
    assert token == plan.total_tokens
    assert json.loads((undisturbed / "plan.json").read_text()) == plan.to_json()


def test_a_run_learns_and_is_evaluated_at_the_end_of_every_stage(undisturbed):
    records = read_records(undisturbed / "metrics.jsonl")
    assert records[-1]["loss"] < 0.8 * records[0]["loss"]
    evaluations = read_records(undisturbed / "eval.jsonl")
    assert [record["stage"] for record in evaluations] == ["pretrain", "extend", "decay"]
    assert [record["rope_theta"] for record in evaluations] == [10_000, 160_000, 160_000]
    assert evaluations[-1]["loss"] < evaluations[0]["loss"] < 6.2
    assert all(0 < record["masked_accuracy"] < 1 for record in evaluations)


def test_every_rank_keeps_a_log(undisturbed):
    assert sorted(path.name for path in (undisturbed / "logs").iterdir()) == ["rank0.log", "rank1.log"]


def test_relaunching_a_finished_run_says_so_and_changes_nothing(tiny, undisturbed):
    before = (undisturbed / "metrics.jsonl").read_bytes()
    run = tiny.launch()
    assert run.returncode == 0
    assert "finished" in run.stdout
    assert (undisturbed / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "kill_at",
    [
        f"update:{2 * RUNG + 3}",  # in the middle of a segment, between two checkpoints
        f"saved:{2 * RUNG}",  # a checkpoint on a segment's last update
        f"saving:{RUNG + 2}",  # a checkpoint that never became complete
    ],
)
def test_a_killed_run_resumes_to_bit_identical_weights(tiny, undisturbed, kill_at):
    name = "killed-" + kill_at.replace(":", "-")
    killed = tiny.launch(f"run_name={name}", script=KILLED_LAUNCH, KILL_AT=kill_at)
    assert killed.returncode != 0
    run = tiny.folder / "runs" / name
    reached = len(read_records(run / "metrics.jsonl"))
    assert reached == int(kill_at.partition(":")[2])
    resumed = tiny.launch(f"run_name={name}")
    assert resumed.returncode == 0, resumed.stderr[-4000:]
    assert digests(run) == digests(undisturbed)
    expected, found = final_weights(undisturbed), final_weights(run)
    assert expected.keys() == found.keys()
    for key, weight in expected.items():
        assert torch.equal(weight, found[key]), key
    losses = [[record["loss"] for record in read_records(path / "metrics.jsonl")] for path in (undisturbed, run)]
    assert losses[0] == losses[1]


def test_other_ranks_workers_and_microbatches_see_the_same_rows_and_masks(tiny, undisturbed):
    run = tiny.launch("run_name=alone", "data.num_workers=2", "stages[0].device_train_microbatch_size=5", ranks=1)
    assert run.returncode == 0, run.stderr[-4000:]
    assert digests(tiny.folder / "runs/alone") == digests(undisturbed)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["stages[0].row_lenght=3"], "did you mean 'row_length'?"),
        (["stages[1].global_train_batch_size=3"], "an update of stage 'extend' has 3 rows, which 2 processes"),
        (["data.local=nowhere"], "nowhere/tokenizer: no tokenizer.json there; prepare the data first"),
        (["stages[0].row_length=128"], "one/128/train/manifest.json: no such file"),
        (["model.vocab_size=64"], "token ids do not fit the model's embedding"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line_before_a_process_group_is_made(tiny, overrides, says):
    run = tiny.launch("run_name=refused", *overrides)
    assert run.returncode != 0
    errors = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, run.stderr
    assert says in errors[0]
    assert "Traceback" not in run.stdout + run.stderr
    assert not (tiny.folder / "runs/refused").exists()


def test_checkpoints_of_which_none_is_complete_are_never_taken_for_a_fresh_start(tiny):
    (tiny.folder / "runs/torn/checkpoints/ba2").mkdir(parents=True)
    run = tiny.launch("run_name=torn", ranks=1)
    assert run.returncode != 0
    assert "none of them complete" in run.stderr
