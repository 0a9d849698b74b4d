"""Learning-rate schedulers for a bare Composer Trainer. A recipe needs none: its plan has the learning rate.

Warm-up, stable, decay is ours, since Composer has none, and is the plan's own function. Constant with warm-up and
cosine with warm-up are Composer's, named here so that the three are found in one place. They draw the plan's curves, in
tokens as in any unit: those of a stage with `t_decay: 0tok`, and of one whose `decay_shape: cosine` takes up all that
the warm-up leaves.

Composer steps its schedulers before it moves its clock on (`Trainer._train_loop`). So an update has the learning rate
that belongs to the start of the update before it, with any of Composer's schedulers, these included. In a recipe
`SegmentSwitch` sets the exact one.
"""

from composer.core import State, Time
from composer.optim import ComposerScheduler, ConstantWithWarmupScheduler, CosineAnnealingWithWarmupScheduler
from composer.optim.scheduler import _convert_time, _raise_if_max_duration_exceeds_t_max

from rotary_foundry.recipe.schedules import DECAYS, warmup_stable_decay

__all__ = ["ConstantWithWarmupScheduler", "CosineAnnealingWithWarmupScheduler", "WarmupStableDecayScheduler"]


class WarmupStableDecayScheduler(ComposerScheduler):
    """Linear warm-up from 0, the peak, and a decay at the end (arXiv 2405.18392).

    Times are Composer's, such as `3_000_000_000tok`, `500ba`, `1ep` or `0.1dur`, all of one unit; `dur` counts in that
    of the Trainer's `max_duration`. As in Composer's own, `scale_schedule_ratio` does not stretch the warm-up.

    Args:
        t_warmup: how long the warm-up takes.
        t_decay: how long the decay takes; it ends at `t_max`.
        decay_shape: one_minus_sqrt, linear or cosine.
        alpha_f: the last learning rate as a multiple of the peak.
        t_max: how long all of it takes; no shorter than the training.

    Raises:
        ValueError: an unknown shape; when called, times of several units, or warm-up and decay longer than `t_max`.
    """

    def __init__(
        self,
        t_warmup: str | Time,
        t_decay: str | Time,
        decay_shape: str = "one_minus_sqrt",
        alpha_f: float = 0.0,
        t_max: str | Time = "1dur",
    ):
        if decay_shape not in DECAYS:
            raise ValueError(f"decay_shape '{decay_shape}' is not one of {', '.join(DECAYS)}")
        self.t_warmup = t_warmup
        self.t_decay = t_decay
        self.decay_shape = decay_shape
        self.alpha_f = alpha_f
        self.t_max = t_max

    def __call__(self, state: State, ssr: float = 1.0) -> float:
        """The share of the peak at the clock of `state`; the schedule but for the warm-up is stretched by `ssr`."""
        t_warmup = _convert_time(self.t_warmup, state)
        t_decay, t_max = (_convert_time(time, state, ssr=ssr) for time in (self.t_decay, self.t_max))
        _raise_if_max_duration_exceeds_t_max(t_max, state)
        if not t_warmup.unit == t_decay.unit == t_max.unit:
            raise ValueError(f"t_warmup {t_warmup}, t_decay {t_decay} and t_max {t_max} must use the same units")
        if t_warmup.value + t_decay.value > t_max.value:
            raise ValueError(f"t_warmup {t_warmup} and t_decay {t_decay} together are longer than t_max {t_max}")
        now = state.timestamp.get(t_max.unit)
        return warmup_stable_decay(
            now.value, t_max.value, t_warmup.value, t_decay.value, self.decay_shape, self.alpha_f
        )
