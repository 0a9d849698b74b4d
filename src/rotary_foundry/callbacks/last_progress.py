"""LastProgress: note when training last went on, for the thread that watches this rank (training/ranks.py).

That is when an update, a held-out batch or a checkpoint has ended. After each of them the host has waited for the
device, so a collective that hangs began later. Uses FIT_START, BATCH_END, EVAL_BATCH_END and BATCH_CHECKPOINT, and
stands behind the callback that saves.
"""

import time

from composer.core import Callback, Event, State
from composer.loggers import Logger

STEPS = {Event.FIT_START, Event.BATCH_END, Event.EVAL_BATCH_END, Event.BATCH_CHECKPOINT}
_last = time.monotonic()


def seconds_without_progress() -> float:
    """Return the seconds since training last went on in this process; before any step, since this module's import."""
    return time.monotonic() - _last


class LastProgress(Callback):
    """Notes the moment of each step, in a global variable of the process, since a rollback replaces the Trainer."""

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        global _last
        if event in STEPS:
            _last = time.monotonic()
