"""Local shards, and whole tensors' sums from them: one all-reduce, of the kind (SUM) that every backend has."""

from collections.abc import Iterable

from torch import Tensor
from torch.distributed import all_reduce
from torch.distributed.tensor import DTensor


def local_tensors(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This rank's shards, maybe empty ones, of DTensors; other tensors as they are."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def sum_over_shards(sums: Tensor, params: list[Tensor]) -> None:
    """Add up over the ranks, in place, what each computed from its shards: `sums` [kinds, params].

    The all-reduce is over the sharded mesh dimension alone, as HSDP's replicas hold the same. A parameter that is not
    sharded is whole on every rank, and counts once.

    Raises:
        ValueError: for parameters sharded over more than one mesh dimension.
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
    """The (mesh, dimension) that a parameter is sharded over; empty for a whole one."""
    if not isinstance(param, DTensor):
        return set()
    return {(param.device_mesh, dim) for dim, placement in enumerate(param.placements) if placement.is_shard()}
