"""LossSpike: how far the loss stands out, in the robust deviations by which `rollback.spike` decides.

It is there whether or not a recipe has that trigger, so that its limit can be chosen from a run. All losses are
remembered, outliers too: the trigger forgets them, but has a limit to know them by, and half of the memory would have
to be outliers to widen a median deviation much. Uses FIT_START and BATCH_END.
"""

import math
from collections import deque

from composer.core import State

from rotary_foundry.callbacks.loss_watch import ENOUGH, MEMORY, robust_spread
from rotary_foundry.callbacks.monitor import Monitor, Numbers


class LossSpike(Monitor):
    """`loss_spike_score`; None for the first updates of a stage, and for a loss that is no number."""

    def __init__(self):
        self.stage: str | None = None
        self.losses: deque[float] = deque(maxlen=MEMORY)

    def resume(self, records: list[dict]) -> None:
        for record in records[-MEMORY:]:
            self._score(record["stage"], record["loss"])

    def measured(self, state: State, ranks: list[Numbers]) -> dict[str, float | None]:
        return {"loss_spike_score": self._score(state.dataloader_label, state.total_loss_dict["loss/train/total"])}

    def _score(self, stage: str, loss: float) -> float | None:
        if stage != self.stage:
            self.stage = stage
            self.losses.clear()
        score = None
        if len(self.losses) >= ENOUGH and math.isfinite(loss):
            median, deviation = robust_spread(self.losses)
            score = (loss - median) / deviation
        if math.isfinite(loss):
            self.losses.append(loss)
        return score
