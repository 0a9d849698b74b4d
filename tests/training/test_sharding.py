"""Sharding holds no more than it says."""

import resource
from datetime import timedelta

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from rotary_foundry import load_recipe
from rotary_foundry.recipe import Recipe
from rotary_foundry.recipe.schema import FSDPConfig
from rotary_foundry.training.first_weights import first_weights
from rotary_foundry.training.sharding import fill, recomputed, shard
from rotary_foundry.utils.errors import ConfigurationError
from tests.ranks import on_ranks

from .runs import network_of

WIDE = ["model.hidden_size=512", "model.num_attention_heads=8", "model.intermediate_size=2048"]


def _peak_below_the_whole(recipe: Recipe, small: Recipe) -> None:
    _filled(small)  # what the first network takes for good: imports, buffers
    before = _peak()
    network = _filled(recipe)
    whole = sum(parameter.numel() for parameter in network.parameters()) * 4
    assert _peak() - before < 0.4 * whole, f"{_peak() - before:,} bytes of {whole:,}"


def _filled(recipe: Recipe) -> nn.Module:
    cpu = torch.device("cpu")
    with torch.device("meta"):
        network = network_of(recipe)
    shard(network, recipe, cpu)
    network.to_empty(device=cpu)
    fill(network, first_weights(recipe))
    return network


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.long
def test_no_rank_ever_holds_the_whole_network(tmp_path):
    recipe = load_recipe("yamls/main/nano.yaml", [*WIDE, "model.num_hidden_layers=16"])  # 73 M parameters, 292 MB
    on_ranks(4, tmp_path, _peak_below_the_whole, recipe, load_recipe("yamls/main/nano.yaml"))


def _waits_as_long_as_the_recipe_says(recipe: Recipe) -> None:
    cpu = torch.device("cpu")
    shard(network := network_of(recipe), recipe, cpu)
    mesh = next(network.parameters()).device_mesh
    timeouts = [group._get_backend(cpu).options._timeout for group in mesh.get_all_groups()]
    assert timeouts == [timedelta(seconds=recipe.dist_timeout)] * mesh.ndim


@pytest.mark.parametrize("replicas", [pytest.param(1, marks=pytest.mark.long), 2])
def test_a_rank_waits_for_the_others_as_long_as_the_recipe_says(tmp_path, replicas):
    recipe = load_recipe(
        "yamls/main/nano.yaml", ["dist_timeout=20", f"fsdp_config.data_parallel_replicate_degree={replicas}"]
    )
    on_ranks(4, tmp_path, _waits_as_long_as_the_recipe_says, recipe)


@pytest.mark.parametrize(
    ("replicas", "shards", "world", "degrees"),
    [(1, -1, 8, (1, 8)), (2, -1, 8, (2, 4)), (4, 2, 8, (4, 2)), (8, -1, 8, (8, 1)), (None, 4, 8, (2, 4))],
)
def test_degrees_fill_up_the_world(replicas, shards, world, degrees):
    assert FSDPConfig(shards, replicas).degrees(world) == degrees


@pytest.mark.parametrize(("nodes", "degrees"), [(1, (1, 8)), (2, (2, 8)), (32, (32, 8))])
def test_each_node_has_a_copy_of_the_model_unless_the_recipe_says_otherwise(nodes, degrees):
    assert FSDPConfig().degrees(8 * nodes, nodes) == degrees


@pytest.mark.parametrize(("replicas", "shards", "world"), [(3, -1, 8), (2, 2, 8), (16, -1, 8), (1, 4, 8)])
def test_degrees_that_are_not_the_world_are_refused(replicas, shards, world):
    with pytest.raises(ConfigurationError, match=f"data_parallel_replicate_degree {replicas} .* {world}$"):
        FSDPConfig(shards, replicas).degrees(world)


@pytest.mark.parametrize("replicas", [1, 2, 4, 8, 16, 32])
def test_a_copy_takes_whole_nodes_or_an_equal_part_of_one(replicas):
    assert FSDPConfig(data_parallel_replicate_degree=replicas).degrees(32, nodes=4) == (replicas, 32 // replicas)


@pytest.mark.parametrize(("replicas", "shards", "nodes"), [(2, -1, 3), (6, -1, 4), (None, 8, 4)])
def test_a_copy_that_would_take_one_node_and_a_half_is_refused(replicas, shards, nodes):
    with pytest.raises(
        ConfigurationError, match=rf"data_parallel_replicate_degree {replicas or ''}.* the {nodes} nodes"
    ):
        FSDPConfig(shards, replicas).degrees(24 if nodes == 3 else 48, nodes)


def test_recomputed_layers_do_not_fill_autocasts_cache():
    """It would keep the weights of all layers in bf16, whole, until the end of the forward pass."""
    layer, copies = nn.Linear(8, 8, bias=False), []

    class Casts(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            if function is torch.ops.aten._to_copy.default and args[0].shape == layer.weight.shape:
                copies.append(StorageWeakRef(made.untyped_storage()))
            return made

    x = torch.ones(3, 8)
    with Casts(), torch.autocast("cpu", torch.bfloat16):
        out = recomputed(layer.forward, x)
        assert len(copies) == 1 and copies[0].expired()
        assert torch.is_autocast_cache_enabled()
    out.float().sum().backward()
    (expected,) = torch.autograd.grad((x.bfloat16() @ layer.weight.bfloat16().T).float().sum(), layer.weight)
    assert torch.equal(layer.weight.grad, expected)
