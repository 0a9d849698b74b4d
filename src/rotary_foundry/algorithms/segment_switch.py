"""SegmentSwitch: set each value that depends on the token clock, whenever it changes.

Acts on FIT_START (a resumed run starts inside a segment, where Composer fires no ITERATION_START), on EPOCH_START
(fired whenever a loader begins, and so at each segment) and on BATCH_START.

The learning rate is set here and not by a Composer scheduler. Composer steps its schedulers before it advances the
clock (`Trainer._train_loop`), so they are one update late.
"""

from collections.abc import Callable, Mapping

from composer.core import Algorithm, Event, State, Time, TimeUnit
from composer.loggers import Logger
from composer.utils import dist
from torch.utils.data import DataLoader

from rotary_foundry.compat.composer import set_iteration_length
from rotary_foundry.recipe import Plan, Recipe


class SegmentSwitch(Algorithm):
    """Makes Composer follow the plan.

    At the start of a segment, it sets the loader, the iteration length, the microbatch size and the objective. At every
    update, it sets the family's knobs, the learning rate, the stage's peak learning rate, and weight decay.

    Args:
        recipe: gives the family's knobs.
        microbatch_rows: the most rows of a forward pass on a rank, by stage.
        plan: the plan compiled from the recipe.
        train_loader: makes the loader of the segment at a token.
    """

    def __init__(
        self,
        recipe: Recipe,
        microbatch_rows: Mapping[str, int],
        plan: Plan,
        train_loader: Callable[[int], DataLoader],
    ):
        self.microbatch_rows = microbatch_rows
        self.knobs = list(recipe.family.knobs)
        self.plan = plan
        self.train_loader = train_loader

    def match(self, event: Event, state: State) -> bool:
        return event in (Event.FIT_START, Event.EPOCH_START, Event.BATCH_START)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if event == Event.BATCH_START:
            self._set_position(state)
        else:
            self._set_segment(state)

    def _set_segment(self, state: State) -> None:
        token = state.timestamp.token.value
        segment = self.plan.segment_at(token)
        dist.barrier()  # no rank starts to read new rows while another still reads old ones
        loader = self.train_loader(token)
        state.set_dataloader(loader, segment.stage)
        state.train_dataloader = state.dataloader
        dist.barrier()
        left = segment.end_token - token
        set_iteration_length(state, Time(state.timestamp.token_in_iteration.value + left, TimeUnit.TOKEN))
        state.device_train_microbatch_size = self.microbatch_rows[segment.stage]
        state.model.stage = segment.stage

    def _set_position(self, state: State) -> None:
        position = self.plan.at(state.timestamp.token.value)
        for name in self.knobs:
            state.model.network.set_knob(name, position.knobs[name])
        values = {"lr": position.lr, "max_lr": position.max_lr} | position.optimizer
        for group in state.optimizers[0].param_groups:
            group.update((key, value) for key, value in values.items() if key in group)
            if not group["decays"]:
                group["weight_decay"] = 0.0
