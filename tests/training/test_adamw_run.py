"""A run with AdamW, its gradients clipped in some stages: recorded, rolled back, killed and resumed as any other."""

import pytest

from rotary_foundry import load_recipe
from rotary_foundry.recipe.compilation import compile_stages
from rotary_foundry.runs.run_folder import RunFolder

from .conftest import TAMPERED_LAUNCH
from .runs import assert_same_run, records

ADAMW = (
    "optimizer={name: adamw, weight_decay: 0.1, max_grad_norm: 0.5}",
    "stages.extend.optimizer={max_grad_norm: null, betas: [0.9, 0.95]}",
    "stages.decay.optimizer.weight_decay=0.2",
)


@pytest.mark.long
def test_a_killed_run_with_adamw_ends_as_the_undisturbed_one_and_records_what_each_stage_sets(tiny):
    undisturbed = tiny.launch("run_name=adamw", *ADAMW)
    assert undisturbed.returncode == 0, undisturbed.stderr[-4000:]
    killed = tiny.launch("run_name=adamw-killed", *ADAMW, script=TAMPERED_LAUNCH, KILL_AT="again:15")
    assert "crashed with exit code -9" in killed.stderr, killed.stderr[-4000:]
    resumed = tiny.launch("run_name=adamw-killed", *ADAMW)
    assert resumed.returncode == 0, resumed.stderr[-4000:]
    runs = [tiny.folder / "runs" / name for name in ("adamw-killed", "adamw")]
    assert_same_run(*runs)

    folder = RunFolder(runs[1])
    plan = compile_stages(load_recipe(folder.recipe)).after(folder.rollbacks())
    for line in records(runs[1]):
        position = plan.at(line["token"] - line["rows"] * line["row_length"])
        assert (line["stage"], line["lr"]) == (position.stage, position.lr)
        for key, value in position.optimizer.items():
            assert line[key] == (list(value) if isinstance(value, tuple) else value), (line["batch"], key)
        assert line["grad_norm"] > 0
    lines = records(runs[1])
    assert {line["max_grad_norm"] for line in lines} == {0.5, None}
    assert {line["weight_decay"] for line in lines} == {0.1, 1e-3}  # the rollback's holds from there on
    assert (
        max(line["grad_norm"] for line in lines if line["max_grad_norm"]) > 0.5
    )  # it is told as it was before clipping


@pytest.mark.long
def test_the_set_rollback_left_out_each_stage_has_its_own_weight_decay(tiny):
    run = tiny.launch("run_name=adamw-straight", "rollback={at: null}", *ADAMW, ranks=1)
    assert run.returncode == 0, run.stderr[-4000:]
    by_stage = {line["stage"]: line["weight_decay"] for line in records(tiny.folder / "runs/adamw-straight")}
    assert by_stage == {"pretrain": 0.1, "extend": 0.1, "decay": 0.2}
