"""Sums over sharded tensors from local shards, by one all-reduce (SUM), which every backend supports."""

from collections.abc import Iterable

from torch import Tensor
from torch.distributed import all_reduce
from torch.distributed.tensor import DTensor


def local_tensors(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return this rank's shards of DTensors, which may be empty, and other tensors unchanged."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def sum_over_shards(sums: Tensor, params: list[Tensor]) -> None:
    """Add up `sums` [kinds, params], which each rank computed from its shards, over the ranks, in place.

    The all-reduce is only over the sharded mesh dimension, because HSDP's replicas hold the same values. A parameter
    that is not sharded is complete on every rank, and counts once.

    Raises:
        ValueError: parameters are sharded over more than one mesh dimension.
    """
    shardings = [_sharding(param) for param in params]
    dimensions = set().union(*shardings)
    if not dimensions:
        return
    if len(dimensions) > 1:
        raise ValueError(f"parameters are sharded over {dimensions}; a sum over shards takes one mesh dimension")
    ((mesh, dim),) = dimensions
    if mesh.get_local_rank(dim) > 0:
        for column, sharding in enumerate(shardings):
            if not sharding:
                sums[:, column] = 0
    all_reduce(sums, group=mesh.get_group(dim))


def _sharding(param: Tensor) -> set[tuple]:
    """Return the (mesh, dimension) over which a parameter is sharded; empty if it is not sharded."""
    if not isinstance(param, DTensor):
        return set()
    return {(param.device_mesh, dim) for dim, placement in enumerate(param.placements) if placement.is_shard()}
