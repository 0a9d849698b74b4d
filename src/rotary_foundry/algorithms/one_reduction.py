"""OneReduction: gather parameters and reduce gradients once per update instead of once per microbatch.

Composer leaves both to FSDP2, which does them for every microbatch unless it is told which one is the last. The whole
parameters and gradients then stay on every rank during an update. Acts on BATCH_START and BEFORE_FORWARD.
"""

from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from torch.distributed.fsdp import FSDPModule

from rotary_foundry.data.batches import count_microbatches


class OneReduction(Algorithm):
    """Tells FSDP2 before every training forward pass whether its backward pass is the update's last."""

    def __init__(self):
        self.left = 0  # microbatches left in the update

    def match(self, event: Event, state: State) -> bool:
        return event in (Event.BATCH_START, Event.BEFORE_FORWARD)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if event == Event.BATCH_START:
            self.left = count_microbatches(state.batch, state.device_train_microbatch_size)
            return
        self.left -= 1
        mark_last(state.model.network, self.left == 0)


def mark_last(network: FSDPModule, last: bool) -> None:
    """Tell a sharded network whether the next backward pass is the last of an update."""
    network.set_is_last_backward(last)
    network.set_requires_gradient_sync(last)
    network.set_reshard_after_backward(last)
