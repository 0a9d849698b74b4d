"""Private parts of Composer 0.32."""

import atexit
import os
import sys
import weakref
from threading import Timer
from types import FrameType

import composer.loggers
from composer import Trainer
from composer.callbacks import CheckpointSaver
from composer.core import State, Time
from composer.loggers import Logger
from torch import nn


class OpenCheckpointSaver(CheckpointSaver):
    """Composer's CheckpointSaver, with a public method around every checkpoint that it writes.

    Composer calls a private method whenever a checkpoint is due. Needed until it has hooks before and after writing.
    """

    def write(self, state: State, logger: Logger) -> None:
        """Write a checkpoint; a subclass may do more before and after."""
        super()._save_checkpoint(state, logger)

    def _save_checkpoint(self, state: State, logger: Logger) -> None:
        self.write(state, logger)


class OpenWandBLogger(composer.loggers.WandBLogger):
    """Composer's WandBLogger, which also tells whether it logs on this rank. Needed until Composer's does."""

    @property
    def enabled(self) -> bool:
        return self._enabled


def set_iteration_length(state: State, length: Time) -> None:
    """Set the length of Composer's current iteration, counted from its start.

    Composer calls a stretch of training with one loader an iteration, and has no public way to set its length. Needed
    until `State.iteration_length` can be set, or `Trainer` takes it as an argument.
    """
    state._iteration_length = length


def keep_from_sharding(network: nn.Module) -> None:
    """Tell Composer that a network is already sharded.

    Composer wraps each child of a model unless this attribute excludes it. The attribute is deprecated without a
    successor. Needed until Composer recognises modules to which `fully_shard` was applied.
    """
    network._fsdp_wrap = False


def forget_exit_hook(trainer: Trainer) -> None:
    """Remove the exit hook of a closed Trainer, which keeps its model and optimizer in memory.

    Composer registers `Engine._close` with the State as argument, and removes it only when Python ends. Needed until
    `Engine.close` removes it.
    """
    atexit.unregister(trainer.engine._close)


def exit_at_sigterm(number: int, frame: FrameType | None) -> None:
    """Handle SIGTERM as Composer does, by an exit with status 143, but not within a finalizer.

    Python drops a SystemExit that is raised in a `__del__` or by `weakref.finalize`, and the process would go on until
    Composer's launcher kills it. So the signal is sent again a moment later. Needed until Composer's handler does this.
    """
    while frame is not None:
        if frame.f_code.co_name == "__del__" or frame.f_globals.get("__name__") == weakref.__name__:
            again = Timer(0.1, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
            return
        frame = frame.f_back
    sys.exit(128 + number)
