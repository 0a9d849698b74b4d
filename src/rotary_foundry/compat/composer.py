"""Private parts of Composer 0.32."""

import atexit

import composer.loggers
from composer import Trainer
from composer.callbacks import CheckpointSaver
from composer.core import State, Time
from composer.loggers import Logger
from torch import nn


class OpenCheckpointSaver(CheckpointSaver):
    """Composer's CheckpointSaver, with a public method around every checkpoint that it writes.

    Composer calls a private method whenever a checkpoint is due. Until it has a hook before and after writing.
    """

    def write(self, state: State, logger: Logger) -> None:
        """Write a checkpoint; a subclass adds what comes before and after."""
        super()._save_checkpoint(state, logger)

    def _save_checkpoint(self, state: State, logger: Logger) -> None:
        self.write(state, logger)


class OpenWandBLogger(composer.loggers.WandBLogger):
    """Composer's WandBLogger, which says whether it logs on this rank. Until Composer's does."""

    @property
    def enabled(self) -> bool:
        return self._enabled


def set_iteration_length(state: State, length: Time) -> None:
    """Set when Composer's present iteration ends, counted from its start.

    Composer calls a stretch of training with one loader an iteration and has no public way to set its length. Until
    `State.iteration_length` or an argument of `Trainer` sets it.
    """
    state._iteration_length = length


def keep_from_sharding(network: nn.Module) -> None:
    """Tell Composer that a network is sharded already.

    Composer wraps each child of a model that this attribute does not exclude. The attribute is deprecated without a
    successor. Until Composer recognises a module that `fully_shard` has seen.
    """
    network._fsdp_wrap = False


def forget_exit_hook(trainer: Trainer) -> None:
    """Remove the exit hook of a closed Trainer, which keeps its model and optimizer in memory.

    Composer registers `Engine._close` with the State as argument, and removes it only when Python ends. Until
    `Engine.close` removes it.
    """
    atexit.unregister(trainer.engine._close)
