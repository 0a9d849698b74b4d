"""What FSDP2 asks of a backend that gloo on CPU has not, put in at the one place where FSDP2 reduces gradients.

- A mean. Asked for one, gloo's reduce-scatter silently sums, and its all-reduce raises. FSDP2 can sum and divide by
  itself, as it does for float16, and is told to do so always.
- An event after HSDP's all-reduce. A CPU stream records none, and FSDP2 asserts that there is one; on CPU everything
  is done by the time it returns, so any event will do.

Both are private functions of torch 2.7.0, which is pinned; tests/training/test_gradients.py holds the outcome.
"""

from typing import Any

import torch
from torch.distributed import ProcessGroup
from torch.distributed.fsdp._fully_shard import _fsdp_collectives, _fsdp_param_group

_foreach_reduce = _fsdp_collectives.foreach_reduce


def complete_gloo() -> None:
    """Make FSDP2 reduce gradients rightly over gloo, in this process, from now on."""
    _fsdp_collectives._get_gradient_divide_factors = _sum_then_divide
    _fsdp_param_group.foreach_reduce = _reduce_with_event


def _sum_then_divide(
    reduce_scatter_group: ProcessGroup, all_reduce_group: ProcessGroup | None, *_: Any
) -> tuple[float, float]:
    """What gradients are divided by before and after they are summed over both groups."""
    ranks = reduce_scatter_group.size() * (all_reduce_group.size() if all_reduce_group else 1)
    return 1.0, float(ranks)


def _reduce_with_event(*args: Any) -> tuple:
    *reduced, all_reduce_input, all_reduce_event, partial = _foreach_reduce(*args)
    if all_reduce_input is not None and all_reduce_event is None:
        all_reduce_event = torch.cpu.Event()
    return *reduced, all_reduce_input, all_reduce_event, partial
