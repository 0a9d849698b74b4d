"""What FSDP2 needs to know about gloo, the backend on CPU: it sums, and cannot average.

Asked for a mean, gloo's reduce-scatter silently sums, and its all-reduce raises. FSDP2 is told to sum and to divide by
itself. tests/training/test_gradients.py holds the outcome against the unsharded model.
"""

from torch import nn
from torch.distributed.fsdp import FSDPModule


def sum_then_divide(network: nn.Module) -> None:
    """Make every FSDP2 unit of a sharded network sum gradients over the ranks, and divide them afterwards."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)
