"""LastProgress: store when training last made progress, for the thread that watches this rank (training/ranks.py).

Progress is the end of an update, a held-out batch or a checkpoint. At each of these the host has waited for the
device, so a collective that hangs started later. Uses FIT_START, BATCH_END, EVAL_BATCH_END and BATCH_CHECKPOINT, and
comes after the callback that saves.
"""

import time

from composer.core import Callback, Event, State
from composer.loggers import Logger

STEPS = {Event.FIT_START, Event.BATCH_END, Event.EVAL_BATCH_END, Event.BATCH_CHECKPOINT}
_last = time.monotonic()


def seconds_without_progress() -> float:
    """Return the seconds since training last made progress in this process; before that, since this module's import."""
    return time.monotonic() - _last


class LastProgress(Callback):
    """Stores the time of each step in a global variable of the process, because a rollback replaces the Trainer."""

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        global _last
        if event in STEPS:
            _last = time.monotonic()
