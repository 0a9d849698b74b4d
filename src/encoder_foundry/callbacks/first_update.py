"""FirstUpdate: says how long it took from the process's start to the end of the first update. Uses BATCH_END."""

import time

import psutil
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist


class FirstUpdate(Callback):
    """Prints one line, on rank 0; after that it is silent."""

    def __init__(self):
        self.said = False

    def batch_end(self, state: State, logger: Logger) -> None:
        if not self.said and dist.get_global_rank() == 0:
            seconds = time.time() - psutil.Process().create_time()
            print(f"update {state.timestamp.batch.value:_} is done, {seconds:.1f} s after the start", flush=True)
        self.said = True
