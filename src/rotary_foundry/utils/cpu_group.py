"""The group of all ranks for what is on the host."""

from functools import cache

from torch import distributed
from torch.distributed import ProcessGroup


@cache
def cpu_group() -> ProcessGroup:
    """Return a group of all ranks over gloo, made once in a process: the default group, where that is one.

    A collective over NCCL would wait for all kernels that the GPU has still to run.
    """
    if distributed.get_backend() == "gloo":
        return distributed.group.WORLD
    return distributed.new_group(backend="gloo")
