"""The process group of all ranks for data on the host."""

from datetime import timedelta
from functools import cache

from torch import distributed
from torch.distributed import ProcessGroup


@cache
def cpu_group(dist_timeout: float) -> ProcessGroup:
    """Return a gloo group of all ranks, made once per process; the default group if that is one.

    A collective over NCCL would wait for all kernels that the GPU still has to run. `dist_timeout` is in seconds.
    """
    if distributed.get_backend() == "gloo":
        return distributed.group.WORLD
    return distributed.new_group(backend="gloo", timeout=timedelta(seconds=dist_timeout))
