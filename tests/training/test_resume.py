"""A checkpoint goes on under the recipe that made it, as far as that has been run."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from encoder_foundry import compile_plan, load_recipe
from encoder_foundry.errors import ConfigurationError
from encoder_foundry.run_folder import CompleteCheckpoint, RunFolder
from encoder_foundry.training.run import _refuse_another_run

NANO = Path(__file__).parents[2] / "yamls/main/nano.yaml"


@pytest.fixture
def resume(tmp_path):
    """Resume nano at the end of its second ramp size, under a recipe with some overrides."""
    recipe = load_recipe(NANO)
    OmegaConf.save(OmegaConf.structured(recipe), tmp_path / "recipe.yaml")
    segment = compile_plan(recipe).segments[1]
    checkpoint = CompleteCheckpoint(tmp_path, segment.start_update + segment.updates, segment.end_token)

    def under(*overrides: str) -> None:
        changed = load_recipe(NANO, overrides)
        _refuse_another_run(changed, compile_plan(changed), RunFolder(tmp_path), checkpoint)

    return under


@pytest.mark.parametrize(
    "override",
    [
        "save_interval=7ba",
        "data.num_workers=2",
        "stages[0].device_train_microbatch_size=2",
        "model.attn_implementation=flash",
        "stages[1].rope_theta=500_000",
        "stages[2].mixture={code: 1.0}",
    ],
)
def test_what_lies_ahead_or_changes_no_number_may_change(resume, override):
    resume(override)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("seed=18", "began with another 'seed'"),
        ("model.intermediate_size=256", "began with another 'model'"),
        ("init_from=runs/smaller", "began with another 'init_from'"),
        ("masking.mlm_probability=0.2", "began with another 'masking'"),
        ("stages[0].rope_theta=20_000", "trained by other stages"),
        ("stages[0].batch_size_ramp.duration=442_368tok", "trained by other stages"),
        ("stages[0].batch_size_ramp=null", "trained by other stages"),
    ],
)
def test_what_was_run_cannot_change(resume, override, says):
    with pytest.raises(ConfigurationError, match=says):
        resume(override)
