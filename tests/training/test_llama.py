"""Llama is sharded, recomputed, compiled and grown as any family."""

from pathlib import Path

import pytest
import torch
from torch import distributed

from rotary_foundry import Recipe, load_recipe
from rotary_foundry.interop.huggingface import export_model
from rotary_foundry.training.first_weights import first_weights
from rotary_foundry.training.sharding import fill, shard
from tests.data_prep.inspection.tree import write_tree
from tests.models.llama.peers import next_tokens
from tests.models.peers import pack
from tests.ranks import on_ranks

from .runs import assert_shards_have_the_whole_models_gradients, network_of

YAMLS = Path(__file__).parents[2] / "yamls"
RECIPE = """
extends: [{yamls}/llama.yaml, {yamls}/models/llama.yaml]
run_name: whole
runs_folder: {folder}/runs
precision: fp32
model: {{vocab_size: 448, hidden_size: 64, intermediate_size: 48, num_hidden_layers: 2, num_attention_heads: 4,
  num_key_value_heads: 2}}
data: {{local: {folder}/data, sources: [mine, yours], num_workers: 0}}
save_interval: 2ba
stages:
  only: {{duration: 2048tok, row_length: 64, global_train_batch_size: 4, device_train_microbatch_size: 2, lr: 1e-3,
     rope_theta: 500_000}}
"""


def _gradients_of_shards(recipes: list[Recipe]) -> None:
    """Compare a sharded network's loss and gradients with those of the whole one."""
    batch = pack(40, 7, 60)
    labels = next_tokens(*batch)
    for recipe in recipes:
        assert_shards_have_the_whole_models_gradients(
            recipe, lambda network: network(*batch, labels=labels).cross_entropy
        )


@pytest.mark.parametrize("traced", [False, pytest.param(True, marks=pytest.mark.long)], ids=["eager", "traced"])
def test_shards_have_the_whole_models_gradients_recomputed_tied_and_grown(tmp_path, traced):
    write_tree(tmp_path / "data")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(folder=tmp_path, yamls=YAMLS))
    small = load_recipe(path)
    weights = {name: first_weights(small)(name) for name in small.model.shape.parameter_shapes()}
    knobs, tokenizer = {"rope_theta": 500_000.0, "rope_factor": 1.0}, tmp_path / "data/tokenizer"
    export_model(weights, small.family, small.model.shape, knobs, tokenizer, 64, tmp_path / "small")
    grown = ["model.hidden_size=96", "model.num_attention_heads=6", "model.num_key_value_heads=3"]
    changes = (
        ["fsdp_config.activation_checkpointing=true"],
        ["model.tie_word_embeddings=true"],
        [*grown, f"init_from={tmp_path}/small", "model.num_hidden_layers=3", "model.rope_scaling=ntk",
         "stages.only.rope_factor={start: 1, end: 8}"],
    )  # fmt: skip
    if traced:
        changes = [[*change, "compile_config={dynamic: true, backend: aot_eager}"] for change in changes]
    on_ranks(2, tmp_path, _gradients_of_shards, [load_recipe(path, change) for change in changes])


def _gradients_of_replicas(recipe: Recipe) -> None:
    """Compare the mean of the ranks' gradients, each of documents of its own, with that of one whole network."""
    with torch.device("meta"):
        network = network_of(recipe)
    shard(network, recipe, torch.device("cpu"))
    network.to_empty(device="cpu")
    whole, values = network_of(recipe), first_weights(recipe)
    fill(network, values)
    fill(whole, values)
    mesh = next(network.parameters()).device_mesh
    assert mesh.shape == (2, 2)
    of_ranks = [pack(40 + rank, 7, 60 - rank) for rank in range(4)]
    for rank, batch in enumerate(of_ranks):
        (whole(*batch, labels=next_tokens(*batch)).cross_entropy / 4).backward()
        if rank == distributed.get_rank():
            network(*batch, labels=next_tokens(*batch)).cross_entropy.backward()
    expected = {name: parameter.grad for name, parameter in whole.named_parameters()}
    for name, parameter in network.named_parameters():
        error = (parameter.grad.full_tensor() - expected[name]).norm()
        assert error <= 1e-5 * expected[name].norm(), name


@pytest.mark.long
def test_two_replicas_of_two_shards_have_the_whole_models_gradients(tmp_path):
    write_tree(tmp_path / "data")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(folder=tmp_path, yamls=YAMLS))
    recipe = load_recipe(path, ["fsdp_config.data_parallel_replicate_degree=2"])
    on_ranks(4, tmp_path, _gradients_of_replicas, recipe)
