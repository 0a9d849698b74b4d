"""A recipe of a Llama is loaded, checked by key and planned, with a warning where theta is small for the rows."""

from pathlib import Path

import pytest
from rich.console import Console

from rotary_foundry import compile_plan, load_recipe
from rotary_foundry.reporting.plan_table import print_plan
from rotary_foundry.utils.errors import ConfigurationError

YAMLS = Path(__file__).parents[3] / "yamls"
RECIPE = """
extends: [{yamls}/llama.yaml, {yamls}/models/llama2_7b.yaml]
run_name: long
data: {{local: data, sources: [mine]}}
save_interval: 10ba
stages:
  short: {{duration: 4_194_304tok, row_length: 4096, global_train_batch_size: 1024, device_train_microbatch_size: 1,
     lr: 2e-5}}
  long: {{duration: 4_194_304tok, row_length: 32_768, global_train_batch_size: 128, device_train_microbatch_size: 1,
     lr: 2e-5, rope_theta: 500_000}}
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "long.yaml"
    path.write_text(RECIPE.format(yamls=YAMLS))
    return path


def test_theta_is_a_stages_and_the_plan_warns_of_a_small_one(recipe):
    """Llama 2 Long's 500,000 lies under the bound of a later paper, as Llama 2's 10,000 does at 4,096 tokens."""
    loaded = load_recipe(recipe)
    plan = compile_plan(loaded)
    assert [plan.at(token).knobs["rope_theta"] for token in (0, 4_194_304)] == [10_000, 500_000]
    console = Console(width=300, record=True)
    print_plan(loaded, plan, console=console)
    said = console.export_text()
    assert "short: rope_theta 10,000 is small for rows of 4,096 tokens" in said
    assert "long: rope_theta 500,000 is small for rows of 32,768 tokens" in said and "needs 630,000" in said


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["model.num_key_value_heads=5"], "'model.num_key_value_heads': 5 key/value heads do not divide 32 heads"),
        (["model.rope_scaling=dynamic"], "'model.rope_scaling': 'dynamic' is not known"),
        (["model.rope_factor=8"], "'model.rope_factor': 8 has no effect with rope_scaling 'none'"),
        (["stages.long.rope_factor=8"], "'stages.long.rope_factor': 8 has no effect with rope_scaling 'none'"),
        (
            ["model.rope_scaling=yarn"],
            "'model.original_max_position_embeddings': null, but 'yarn' needs the row length",
        ),
        (
            ["model.rope_scaling=yarn", "model.original_max_position_embeddings=4096", "stages.long.rope_factor=4"],
            "long.yaml: 'stages.long.rope_factor': 4 times original_max_position_embeddings, 4,096, are 16,384",
        ),
        (["stages.long.rope_theta=1"], "'stages.long.rope_theta': 1 is not a finite number above 1"),
        (["stages.long.local_rope_theta=10000"], "local_rope_theta"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_key(recipe, overrides, says):
    with pytest.raises(ConfigurationError) as refused:
        load_recipe(recipe, overrides)
    assert says in str(refused.value)


def test_yarn_begins_in_a_stage(recipe):
    yarn = ["model.rope_scaling=yarn", "model.original_max_position_embeddings=4096"]
    plan = compile_plan(load_recipe(recipe, [*yarn, "stages.long.rope_factor=8"]))
    assert [plan.at(token).knobs["rope_factor"] for token in (0, 4_194_304)] == [1, 8]
