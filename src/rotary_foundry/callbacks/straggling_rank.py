"""StragglingRank: which rank the others wait for.

All ranks of a synchronous update end it together, so a rank's step time says nothing. What tells them apart is the work
of their own: the step without communication, which is where the others wait. Uses BATCH_END.
"""

import statistics

from composer.core import State

from rotary_foundry.callbacks.monitor import Monitor, Numbers
from rotary_foundry.callbacks.step_time import OTHER, StepTime

OWN_WORK = ("data", "forward", "backward", "optimizer", OTHER)


class StragglingRank(Monitor):
    """`slowest_rank`, and `slowest_lag`: its own work over the ranks' median, minus 1; 0 where there is one rank.

    Args:
        step_time: listed before this one.
    """

    def __init__(self, step_time: StepTime):
        self.step_time = step_time

    def local(self, state: State) -> Numbers:
        return {"work": sum(self.step_time.seconds.get(part, 0.0) for part in OWN_WORK)}

    def measured(self, state: State, ranks: list[Numbers]) -> dict[str, float | None]:
        work = [rank["work"] for rank in ranks]
        slowest = max(range(len(work)), key=work.__getitem__)
        return {"slowest_rank": slowest, "slowest_lag": work[slowest] / statistics.median(work) - 1}
