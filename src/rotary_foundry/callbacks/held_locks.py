"""HeldLocks: end a run that has lost its folder or its store to another launch (runs/run_lock.py).

This happens to a run that was suspended for so long that it counted as gone. It ends before it writes the next record
or checkpoint. Uses BATCH_END, EVAL_END and BATCH_CHECKPOINT, and comes before the callbacks that write on these
events.
"""

from collections.abc import Sequence

from composer.core import Callback, State
from composer.loggers import Logger

from rotary_foundry.runs.run_lock import RunLock


class HeldLocks(Callback):
    """Raises a FoundryError once another process has one of the locks.

    Args:
        locks: the locks that this process holds; only the first rank has any.
    """

    def __init__(self, locks: Sequence[RunLock]):
        self.locks = locks

    def batch_end(self, state: State, logger: Logger) -> None:
        for lock in self.locks:
            lock.check()

    def eval_end(self, state: State, logger: Logger) -> None:
        self.batch_end(state, logger)

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        self.batch_end(state, logger)
