"""The plan knows at every token what the optimizer is given."""

from dataclasses import replace
from pathlib import Path

import pytest

from rotary_foundry import compile_plan, load_recipe
from rotary_foundry.recipe.optimizer_settings import AdamWConfig, StableAdamWConfig

NANO = "yamls/main/nano.yaml"
ADAMW = "optimizer={name: adamw, weight_decay: 0.1, max_grad_norm: 1}"


def test_the_name_chooses_the_arguments_and_the_rest_is_inherited():
    assert load_recipe(NANO).optimizer == StableAdamWConfig("stable_adamw", (0.9, 0.98), 1e-6, 1e-5)
    assert load_recipe(NANO, [ADAMW]).optimizer == AdamWConfig("adamw", (0.9, 0.98), 1e-6, 0.1, 1.0)
    assert load_recipe(NANO, ["optimizer.name=adamw"]).optimizer.max_grad_norm is None


def test_the_last_file_to_name_one_chooses(tmp_path):
    (tmp_path / "first.yaml").write_text(
        f"extends: [{Path(NANO).resolve()}]\noptimizer: {{name: adamw, max_grad_norm: 1}}\n"
    )
    (tmp_path / "second.yaml").write_text("extends: [first.yaml]\noptimizer: {weight_decay: 0.2}\n")
    assert load_recipe(tmp_path / "second.yaml").optimizer == AdamWConfig("adamw", (0.9, 0.98), 1e-6, 0.2, 1.0)


def test_a_stage_has_its_own_values_and_the_others_the_runs():
    changes = "stages.extend.optimizer={weight_decay: 0.05, betas: [0.9, 0.95], max_grad_norm: null}"
    plan = compile_plan(load_recipe(NANO, [ADAMW, changes]))
    ends = plan.stage_ends
    run = {"betas": (0.9, 0.98), "weight_decay": 0.1, "max_grad_norm": 1.0}
    extend = {"betas": (0.9, 0.95), "weight_decay": 0.05, "max_grad_norm": None}
    tokens = {0: run, ends["pretrain"] - 1: run, ends["pretrain"]: extend, ends["extend"] - 1: extend}
    for token, expected in (tokens | {ends["extend"]: run, plan.total_tokens: run}).items():
        assert plan.at(token).optimizer == plan.segment_at(token).optimizer == expected
        assert (
            plan.at(token).to_json().items()
            >= {"betas": list(expected["betas"]), "max_grad_norm": expected["max_grad_norm"]}.items()
        )
        assert (
            plan.segment_at(token).to_json()["weight_decay"] == plan.at(token).weight_decay == expected["weight_decay"]
        )


def test_a_rollbacks_weight_decay_holds_from_there_to_the_end_in_every_stage():
    changes = "stages.extend.optimizer={weight_decay: 0.05}"
    at = "rollback.at={token: 1_000_000tok, to: 900_000tok, weight_decay: 0.01}"
    plan, before = (compile_plan(load_recipe(NANO, [ADAMW, changes, *also])) for also in ([at], []))
    back = plan.abandoned[0].start_token
    for segment in plan.segments:
        unchanged = before.segment_at(segment.start_token).optimizer
        expected = unchanged | {"weight_decay": 0.01} if segment.start_token >= back else unchanged
        assert segment.optimizer == expected


@pytest.mark.parametrize("name", ["stable_adamw", "adamw"])
def test_a_stage_that_repeats_the_runs_values_changes_nothing(name):
    recipe = load_recipe(NANO, [f"optimizer.name={name}"])
    again = {
        key: list(value) if isinstance(value, tuple) else value for key, value in recipe.optimizer.scheduled().items()
    }
    stages = {key: replace(stage, optimizer=again) for key, stage in recipe.stages.items()}
    assert compile_plan(replace(recipe, stages=stages)) == compile_plan(recipe)
