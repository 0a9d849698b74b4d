"""StragglingRank: find the rank that the others wait for.

All ranks of a synchronous update end it at the same time, so their step times are equal. The ranks differ in the step
time without communication, because the faster ranks wait in communication. Uses BATCH_END.
"""

import statistics

from composer.core import State

from rotary_foundry.callbacks.monitor import Monitor, Numbers
from rotary_foundry.callbacks.step_time import OTHER, StepTime

OWN_WORK = ("data", "forward", "backward", "optimizer", OTHER)


class StragglingRank(Monitor):
    """Adds `slowest_rank`, and `slowest_lag`: its time without communication over the median, minus 1; 0 for one rank.

    Args:
        step_time: the StepTime monitor, which must come earlier in the list.
    """

    def __init__(self, step_time: StepTime):
        self.step_time = step_time

    def local(self, state: State) -> Numbers:
        return {"work": sum(self.step_time.seconds.get(part, 0.0) for part in OWN_WORK)}

    def measured(self, state: State, ranks: list[Numbers]) -> dict[str, float | None]:
        work = [rank["work"] for rank in ranks]
        slowest = max(range(len(work)), key=work.__getitem__)
        return {"slowest_rank": slowest, "slowest_lag": work[slowest] / statistics.median(work) - 1}
