"""Shard a network with FSDP2, with one unit for each layer, each head and the rest, before Composer gets it.

Composer could call `fully_shard` itself. But it builds the mesh from a configuration without replicas, materialises
meta parameters on CUDA only, and wraps checkpointed layers in a module that changes parameter names. So the network is
sharded here, and Composer saves, loads and trains a model that is already sharded.

- The network is built on the meta device, so a rank never holds more than its shards and one full parameter (`fill`).
- Recomputation and compilation replace a layer's `forward` but not the module, so that parameters keep their names in
  checkpoints, decay groups and exports. FSDP's hooks run outside both.
"""

import functools
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from composer.utils import ParallelismType, dist
from composer.utils.parallelism import FSDP2Config
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from rotary_foundry.compat.composer import keep_from_sharding
from rotary_foundry.compat.torch import allow_graphs, gather_matrices_in, set_timeout
from rotary_foundry.recipe.schema import Recipe
from rotary_foundry.training.gloo import sum_then_divide
from rotary_foundry.utils.errors import ConfigurationError
from rotary_foundry.utils.wording import one_line

# Most graphs of the layers' code: kinds of layers (at most three so far) × training and evaluation × microbatch
# sizes.
MOST_GRAPHS = 64
REPLICATE, SHARD = ParallelismType.DATA_PARALLEL_REPLICATE.value, ParallelismType.DATA_PARALLEL_SHARD.value


class ShardingConfig(FSDP2Config):
    """The settings that Composer needs: the mesh (it saves only the first replica), and the name of a checkpoint."""

    def __init__(self, replicas: int):
        super().__init__()
        self.replicas = replicas

    @property
    def data_parallel_replicate_degree(self) -> int | None:
        return self.replicas if self.replicas > 1 else None

    @property
    def sharded_ckpt_prefix_dir(self) -> str:
        return "ba{batch}"  # without the epoch, which here is only the end of a loader


def replicas_of(recipe: Recipe) -> int:
    """Return the number of replicas of the model on these ranks."""
    nodes = -(-dist.get_world_size() // dist.get_local_world_size())
    return recipe.fsdp_config.degrees(dist.get_world_size(), nodes)[0]


def shard(network: nn.Module, recipe: Recipe, device: torch.device) -> None:
    """Shard a network over all ranks, in place, as the recipe's `fsdp_config` and `compile_config` say."""
    replicas = replicas_of(recipe)
    mesh = data_parallel_mesh(replicas, device, recipe.dist_timeout)
    # Shards stay float32, and inputs are not cast. Autocast (on CPU our own) chooses the dtype of a layer's operations.
    # It rounds a layer's matrices to bf16, so they are gathered in bf16. Norms' gains are near 1, where bf16 is precise
    # to one part in 128, so they are gathered in float32, and so are embeddings, which are looked up.
    exact = MixedPrecisionPolicy(cast_forward_inputs=False)
    options = {
        "mesh": mesh,
        "reshard_after_forward": recipe.fsdp_config.reshards(recipe.model.shape.parameters),
    }
    of_layer = gather_matrices_in(torch.bfloat16) if recipe.precision == "amp_bf16" else exact
    compiled = recipe.is_compiled_on(device.type)
    if compiled:
        allow_graphs(MOST_GRAPHS)
    for layer in network.blocks:
        if compiled:
            layer.forward = _compiled(layer.forward, recipe.compiled_with(device.type))
        if recipe.fsdp_config.activation_checkpointing:
            layer.forward = functools.partial(recomputed, layer.forward)
        fully_shard(layer, **options, mp_policy=of_layer)
    heads = getattr(network, "heads", {})
    for head in heads.values():
        fully_shard(head, **options, mp_policy=exact)
    fully_shard(network, **options | {"reshard_after_forward": None}, mp_policy=exact)
    if heads:
        register_fsdp_forward_method(network, "encode")
    if distributed.get_backend() == "gloo":
        sum_then_divide(network)
    keep_from_sharding(network)


def check_compile_config(recipe: Recipe, device_type: str) -> None:
    """Refuse what torch.compile refuses; modes, backends and their options depend on the installed torch.

    Raises:
        ConfigurationError: torch refuses the settings; has torch's reason.
    """
    arguments = recipe.compiled_with(device_type)
    if not arguments.get("disable"):
        _compiled(torch.nn.functional.gelu, arguments)  # any function, which is compiled only when it is called


def data_parallel_mesh(replicas: int, device: torch.device, timeout: float) -> DeviceMesh:
    """Make the mesh: all ranks in one dimension, or, with replicas, replicate × shard.

    A mesh makes its groups with torch's default time-out; it is replaced by `timeout` seconds.
    """
    world = distributed.get_world_size()
    if replicas == 1:
        mesh = init_device_mesh(device.type, (world,), mesh_dim_names=(SHARD,))
    else:
        mesh = init_device_mesh(device.type, (replicas, world // replicas), mesh_dim_names=(REPLICATE, SHARD))
    for group in mesh.get_all_groups():
        set_timeout(timedelta(seconds=timeout), group)
    return mesh


@torch.no_grad()
def fill(network: nn.Module, values: Callable[[str], Tensor]) -> None:
    """Set every parameter to the full tensor that `values` returns for its name; each rank keeps its own shard."""
    for name, parameter in network.named_parameters():
        whole = values(name).to(parameter.device)
        if isinstance(parameter, DTensor):
            whole = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter.copy_(whole)


def recomputed(forward: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Call a layer's forward under activation checkpointing, without autocast's cache.

    A layer casts each weight once. The cache would keep all casts until the end of the forward pass: 138 GB for a model
    of 70 B parameters, on every GPU.
    """
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        return checkpoint(forward, *arguments, use_reentrant=False)
    finally:
        torch.set_autocast_cache_enabled(cached)


def _compiled(forward: Callable[..., Tensor], arguments: dict[str, Any]) -> Callable[..., Tensor]:
    try:
        return torch.compile(forward, **arguments)
    except Exception as error:  # an unknown argument, mode or backend
        raise ConfigurationError(f"'compile_config': torch.compile refuses {arguments}: {one_line(error)}") from error
