"""FirstUpdate: print the time from a start to the end of its first update. Uses BATCH_END."""

import time

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist


class FirstUpdate(Callback):
    """Prints one line on rank 0 after the first update, and nothing later.

    Args:
        started: the time of the start, in seconds since the Unix epoch.
    """

    def __init__(self, started: float):
        self.started = started
        self.said = False

    def batch_end(self, state: State, logger: Logger) -> None:
        if not self.said and dist.get_global_rank() == 0:
            seconds = time.time() - self.started
            print(f"update {state.timestamp.batch.value:_} is done, {seconds:.1f} s after the start", flush=True)
        self.said = True
