"""A checkpoint goes on under the recipe that made it, as far as that has been run."""

from pathlib import Path

import pytest

from rotary_foundry.recipe.compilation import set_rollback
from rotary_foundry.runs.changes import changes_of_run, check_changes
from rotary_foundry.runs.recipes import load_recipe_and_plan
from rotary_foundry.runs.run_folder import CompleteCheckpoint, RunFolder, mark_complete
from rotary_foundry.utils.errors import ConfigurationError, FoundryError

NANO = Path(__file__).parents[2] / "yamls/main/nano.yaml"


@pytest.fixture
def resume():
    """Resume nano at the end of its first ramp size, under a recipe with some overrides."""
    before = load_recipe_and_plan(NANO)
    token = before[1].segments[0].end_token
    return lambda *overrides: check_changes(before, load_recipe_and_plan(NANO, overrides), [], token)


@pytest.mark.parametrize(
    "override",
    [
        "save_interval=7ba",
        "data.num_workers=2",
        "stages.pretrain.device_train_microbatch_size=2",
        "model.attn_implementation=flash",
        "stages.extend.rope_theta=500_000",
        "stages.extend.mlm_probability={start: 0.3, end: 0.1}",
        "stages.pretrain.mlm_probability=0.3",
        "stages.decay.mixture={code: 1.0}",
        "stages.decay.optimizer={weight_decay: 0.1, betas: [0.9, 0.95]}",
        "callbacks={lr_monitor: {}}",
        "stages.pretrain.duration=1_900_000tok",
        "rollback.non_finite={data: advance}",
    ],
)
def test_what_lies_ahead_or_changes_no_number_may_change(resume, override):
    resume(override)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("seed=18", "'seed': 17 → 18: every update depends on it"),
        ("model.intermediate_size=256", "'model.intermediate_size': 240 → 256: every update"),
        ("init_from=runs/smaller", "'init_from': None → runs/smaller: every update"),
        ("objective.mlm_probability=0.2", "'objective.mlm_probability': 0.3 → 0.2: every update"),
        ("optimizer.name=adamw", "'optimizer.name': stable_adamw → adamw: every update"),
        ("stages.pretrain.optimizer.betas=[0.8, 0.98]", "'stages.pretrain.optimizer.betas': None → .* would change"),
        ("data.shuffle_block_size=4096", "'data.shuffle_block_size': 262144 → 4096: every update"),
        ("stages.pretrain.rope_theta=20_000", "'stages.pretrain.rope_theta': 10000 → 20000 would change the first"),
        ("stages.pretrain.mlm_probability=0.2", "'stages.pretrain.mlm_probability': None → 0.2 would change the first"),
        (
            "stages.pretrain.mlm_probability={start: 0.3, end: 0.1}",
            "'stages.pretrain.mlm_probability': None → {.*} would change the first",
        ),
        ("stages.pretrain.lr=2e-3", "'stages.pretrain.lr': 0.0014 → 0.002 would change the first"),
        ("stages.pretrain.t_warmup=0tok", "'stages.pretrain.t_warmup': 300_000tok → 0tok would change the first"),
        (
            "stages.pretrain.batch_size_ramp.duration=589_824tok",
            "'stages.pretrain.batch_size_ramp.duration': 1_179_648tok → 589_824tok would",
        ),
        ("stages.pretrain.batch_size_ramp=null", "'stages.pretrain.batch_size_ramp': {.*} → None would change"),
    ],
)
def test_what_was_run_cannot_change(resume, override, says):
    with pytest.raises(ConfigurationError, match=says):
        resume(override)


def test_a_set_rollback_that_has_been_made_cannot_change():
    at = "rollback.at={token: 500_000tok, to: 400_000tok, lr: 1e-4}"
    before, changed = load_recipe_and_plan(NANO, [at]), load_recipe_and_plan(NANO, [at, "rollback.at.lr=1e-5"])
    made = set_rollback(*before)
    assert check_changes(before, changed, [], made.to_token)
    with pytest.raises(ConfigurationError, match=r"'rollback\.at\.lr': 0\.0001 → 1e-05: this rollback is already done"):
        check_changes(before, changed, [made], made.to_token)


def test_a_set_rollback_cannot_be_added_behind_the_run(resume):
    with pytest.raises(
        ConfigurationError, match=r"'rollback\.at\.token': 200_000tok is in the past of the run, which is at"
    ):
        resume("rollback.at={token: 200_000tok, to: 100_000tok, lr: 1e-4}")
    assert resume("rollback.at={token: 700_000tok, to: 100_000tok, lr: 1e-4}")


def test_a_node_that_has_only_its_own_parts_of_a_checkpoint_leaves_it_to_the_store(tmp_path):
    folder = RunFolder(tmp_path / "nano")
    checkpoint = folder.checkpoints / "ba100"
    checkpoint.mkdir(parents=True)
    (checkpoint / "__0_0.distcp").touch()
    mark_complete(CompleteCheckpoint(checkpoint, 100, 100_000, 0, {}, {"__0_0.distcp": 0, "__8_0.distcp": 0}))
    assert changes_of_run(folder, *load_recipe_and_plan(NANO, ["save_folder=s3://bucket/runs"])) == []
    with pytest.raises(FoundryError, match="none of them complete"):
        changes_of_run(folder, *load_recipe_and_plan(NANO))
