"""GracefulStop: SIGTERM ends the update, writes a checkpoint, and ends the run with a status of its own.

Schedulers send SIGTERM some seconds before they take a machine away. Composer's own handler exits where it stands, in
the middle of an update or of a checkpoint. Uses FIT_START and BATCH_CHECKPOINT.

That a signal came is known to the process, not to a callback: it may come while a rollback changes Trainers.
"""

import signal
import threading

import torch
from composer.core import Callback, State
from composer.core.engine import sigterm_handler
from composer.loggers import Logger
from composer.utils import dist

from encoder_foundry.callbacks.checkpoints import CompleteCheckpointSaver
from encoder_foundry.errors import StopRequested

_requested = threading.Event()


def _request(*_: object) -> None:
    _requested.set()
    signal.signal(signal.SIGTERM, sigterm_handler)


class GracefulStop(Callback):
    """Raises StopRequested on all ranks at the same update, once any has had a SIGTERM. A second one exits at once.

    Args:
        saver: writes the checkpoint, unless the update has one already.
    """

    def __init__(self, saver: CompleteCheckpointSaver):
        self.saver = saver

    def fit_start(self, state: State, logger: Logger) -> None:
        if not _requested.is_set():
            signal.signal(signal.SIGTERM, _request)

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        requested = state.device.tensor_to_device(torch.tensor(int(_requested.is_set())))
        dist.all_reduce(requested, reduce_operation="MAX")
        if requested.item() and state.timestamp < state.max_duration:
            self.saver.save(state, logger)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's, sent as soon as the first rank has left
            raise StopRequested(f"stopped by SIGTERM after update {state.timestamp.batch.value:_}, which is saved")
