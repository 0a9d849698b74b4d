"""Configure FSDP2 for gloo, the backend on CPU, which can sum but not average.

For a mean, gloo's reduce-scatter silently returns the sum, and its all-reduce raises. So FSDP2 is configured to sum and
to divide itself. tests/training/test_gradients.py compares the gradients with those of the unsharded model.
"""

from torch import nn
from torch.distributed.fsdp import FSDPModule


def sum_then_divide(network: nn.Module) -> None:
    """Make every FSDP2 unit of a sharded network sum gradients over the ranks, and divide them afterwards."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)
