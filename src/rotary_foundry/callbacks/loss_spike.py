"""LossSpike: log how far the loss is above its median, in the robust deviations that `rollback.spike` uses.

It is logged even if a recipe does not have that trigger, so that its limit can be chosen from a run. All losses are
kept, including outliers. The trigger drops outliers, but it has a limit that defines them; here half of the losses
would have to be outliers to widen a median deviation much. Uses FIT_START and BATCH_END.
"""

import math
from collections import deque

from composer.core import State

from rotary_foundry.callbacks.loss_watch import ENOUGH, MEMORY, robust_spread
from rotary_foundry.callbacks.monitor import Monitor, Numbers


class LossSpike(Monitor):
    """Adds `loss_spike_score`, which is None for the first updates of a stage and for a loss that is not finite."""

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
