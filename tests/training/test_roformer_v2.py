"""RoFormerV2 is sharded, recomputed, compiled, grown, killed and resumed as any family, with its own recipe's parts."""

import json
import os
import signal
from pathlib import Path

import pytest
from composer.core import Callback
from torch.multiprocessing import ProcessExitedException

from rotary_foundry import Recipe, compile_plan, load_recipe
from rotary_foundry.data.corpus import open_corpus
from rotary_foundry.interop.checkpoint_weights import load_checkpoint
from rotary_foundry.interop.huggingface import export_model
from rotary_foundry.recipe.compilation import compile_stages
from rotary_foundry.training.first_weights import first_weights
from rotary_foundry.training.run import train
from tests.data_prep.inspection.tree import write_tree
from tests.models.peers import masked, pack
from tests.ranks import on_ranks

from .runs import assert_same_run, assert_shards_have_the_whole_models_gradients, column, digests

YAMLS = Path(__file__).parents[2] / "yamls"
RECIPE = """
extends: [{yamls}/roformer_v2.yaml, {yamls}/models/roformer_v2.yaml]
run_name: whole
runs_folder: {folder}/runs
precision: fp32
progress_bar: false
model: {{vocab_size: 448, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 3, num_attention_heads: 2}}
data: {{local: {folder}/data, sources: [mine, yours], num_workers: 0}}
save_interval: 2ba
stages:
  only: {{duration: 2048tok, row_length: 64, global_train_batch_size: 4, device_train_microbatch_size: 2, lr: 1e-2,
     lr_schedule: [[0tok, 0], [512tok, 1], [1024tok, 0.5], [1dur, 0.01]],
     residual_scale: {{start: 0, end: 1, duration: 1280tok}}}}
"""
KILLED_AT = 3  # updates, of 8; its checkpoint is of the second


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("roformer")
    write_tree(folder / "data", word_starts=True)
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(folder=folder, yamls=YAMLS))
    return path


def _gradients_of_shards(recipes: list[Recipe]) -> None:
    """Compare a sharded network's loss and gradients with those of the whole one, at a scale inside the ramp."""
    input_ids, cu_seqlens = pack(40, 7, 60)

    def loss(network):
        network.set_knob("residual_scale", 0.5)
        network.set_knob("hidden_dropout", 0.0)
        return network(input_ids, cu_seqlens, labels=masked(input_ids)).cross_entropy

    for recipe in recipes:
        assert_shards_have_the_whole_models_gradients(recipe, loss)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_shards_have_the_whole_models_gradients_recomputed_traced_and_grown(recipe, tmp_path):
    small = load_recipe(recipe)
    weights = {name: first_weights(small)(name) for name in small.model.shape.parameter_shapes()}
    knobs = {"rope_theta": 10_000.0, "residual_scale": 1.0}
    tokenizer = recipe.parent / "data/tokenizer"
    export_model(weights, small.family, small.model.shape, knobs, tokenizer, 64, tmp_path / "small")
    grown = [f"init_from={tmp_path}/small", "model.hidden_size=64", "model.num_attention_heads=4"]
    changes = (
        ["fsdp_config.activation_checkpointing=true"],
        ["compile_config={dynamic: true, backend: aot_eager}"],
        [*grown, "model.num_hidden_layers=5", "model.intermediate_size=80"],
    )
    on_ranks(2, tmp_path, _gradients_of_shards, [load_recipe(recipe, change) for change in changes])


class Kill(Callback):
    """Kills the process at the end of an update, before anything more is saved."""

    def __init__(self, update: int):
        self.update = update

    def batch_end(self, state, logger):
        if state.timestamp.batch.value == self.update:
            os.kill(os.getpid(), signal.SIGKILL)


def _train(path: Path, overrides: list[str]) -> None:
    recipe = load_recipe(path, overrides)
    train(recipe, compile_stages(recipe), open_corpus(recipe))


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_ramp_of_the_residual_scale_is_the_plans_and_exact_under_kill_and_rescale(recipe, tmp_path):
    """With LAMB, a learning rate of lines and masks of whole words."""
    runs = recipe.parent / "runs"
    on_ranks(1, tmp_path, _train, recipe, [])
    scales, plan = column(runs / "whole", "residual_scale"), compile_plan(load_recipe(recipe))
    assert scales == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1])
    assert (scales[0], scales[5:]) == (0, [1, 1, 1])  # exactly
    assert [plan.at(256 * update).knobs["residual_scale"] for update in range(8)] == scales
    kill = f"callbacks={json.dumps({f'{Kill.__module__}.{Kill.__name__}': {'update': KILLED_AT}})}"
    with pytest.raises(ProcessExitedException):
        on_ranks(1, tmp_path, _train, recipe, ["run_name=killed", kill])
    assert load_checkpoint(runs / "killed").knobs["residual_scale"] == scales[1]  # of the last update that is saved
    on_ranks(1, tmp_path, _train, recipe, ["run_name=killed"])
    assert_same_run(runs / "killed", runs / "whole")
    for ranks, name in ((1, "one"), (2, "two")):  # without dropout, which each rank draws for its own rows
        on_ranks(ranks, tmp_path, _train, recipe, [f"run_name={name}", "model.hidden_dropout=0"])
    assert digests(runs / "two") == digests(runs / "whole")
    for key in ("residual_scale", "lr"):
        assert column(runs / "two", key) == column(runs / "whole", key)
    assert column(runs / "two", "loss") == pytest.approx(column(runs / "one", "loss"), rel=1e-5)
