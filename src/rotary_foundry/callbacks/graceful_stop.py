"""GracefulStop: a signal ends the update, writes a checkpoint, and ends the run with a status of its own.

Schedulers send SIGTERM some seconds before they take a machine away. Composer's own handler exits where it stands, in
the middle of an update or of a checkpoint. Uses FIT_START and BATCH_CHECKPOINT.

SIGUSR1 asks for the same, and as often as one likes. It is what `launch/stoppable.py` sends, blocked until here.

That a signal came is known to the process, not to a callback: it may come while a rollback changes Trainers.
"""

import signal
import threading

import torch
from composer.core import Callback, State
from composer.core.engine import sigterm_handler
from composer.loggers import Logger
from composer.utils import dist

from rotary_foundry.callbacks.checkpoint_saver import CompleteCheckpointSaver
from rotary_foundry.utils.errors import StopRequested

_requested = threading.Event()


def _request(*_: object) -> None:
    _requested.set()
    signal.signal(signal.SIGTERM, sigterm_handler)


def _request_again(*_: object) -> None:
    _requested.set()


def stop_requested() -> bool:
    """Whether this process has had a SIGTERM or a SIGUSR1 since training began."""
    return _requested.is_set()


class GracefulStop(Callback):
    """Raises StopRequested on all ranks at the same update, once any has had a SIGTERM or a SIGUSR1.

    A second SIGTERM exits at once.

    Args:
        saver: writes the checkpoint, unless the update has one already.
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
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's, sent as soon as the first rank has left
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # else deadly again while Python takes itself down
            raise StopRequested(f"stopped as asked after update {state.timestamp.batch.value:_}, which is saved")
