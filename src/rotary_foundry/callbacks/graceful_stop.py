"""GracefulStop: after a signal, finish the update, write a checkpoint, and end the run with status STOPPED.

Schedulers send SIGTERM some seconds before they stop a machine. Composer's own handler exits at once, in the middle of
an update or of a checkpoint. Uses FIT_START and BATCH_CHECKPOINT.

SIGUSR1 requests the same and may be repeated. `launch/stoppable.py` sends it, and it stays blocked until training has
begun.

A global variable of the process, not a callback, stores that a signal came, because it may come while a rollback
replaces the Trainer.
"""

import signal
import threading

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from rotary_foundry.callbacks.checkpoint_saver import CompleteCheckpointSaver
from rotary_foundry.compat.composer import exit_at_sigterm
from rotary_foundry.utils.errors import StopRequested

_requested = threading.Event()


def _request(*_: object) -> None:
    _requested.set()
    signal.signal(signal.SIGTERM, exit_at_sigterm)


def _request_again(*_: object) -> None:
    _requested.set()


def stop_requested() -> bool:
    """Return whether this process has received SIGTERM or SIGUSR1 since training began."""
    return _requested.is_set()


class GracefulStop(Callback):
    """Raises StopRequested on all ranks at the same update, after any rank has received SIGTERM or SIGUSR1.

    A second SIGTERM exits at once.

    Args:
        saver: writes the checkpoint, unless the update already has one.
    """

    def __init__(self, saver: CompleteCheckpointSaver):
        self.saver = saver

    def fit_start(self, state: State, logger: Logger) -> None:
        if not _requested.is_set():
            signal.signal(signal.SIGTERM, _request)
        signal.signal(signal.SIGUSR1, _request_again)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        requested = state.device.tensor_to_device(torch.tensor(int(_requested.is_set())))
        dist.all_reduce(requested, reduce_operation="MAX")
        if requested.item() and state.timestamp < state.max_duration:
            self.saver.save(state, logger)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher sends one as soon as the first rank has ended
            signal.signal(
                signal.SIGUSR1, signal.SIG_IGN
            )  # otherwise the default handler would kill Python during its shutdown
            raise StopRequested(f"stopped as asked after update {state.timestamp.batch.value:_}, which is saved")
