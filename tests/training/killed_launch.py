"""`launch/` with a SIGKILL of the whole rank at a chosen point: `composer … killed_launch.py RECIPE [key=value …]`.

KILL_AT is `update:N` (at the end of update N, before anything is saved), `saved:N` (as soon as the checkpoint of update
N is complete), or `saving:N` (while it is being written: its parts are there, COMPLETE is not).
"""

import os
import runpy
import signal
import sys
from pathlib import Path

from encoder_foundry.callbacks import checkpoints
from encoder_foundry.callbacks.run_records import RunRecords

MOMENT, _, UPDATE = os.environ["KILL_AT"].partition(":")


def kill(moment: str, batch: int) -> None:
    if (moment, batch) == (MOMENT, int(UPDATE)):
        os.kill(os.getpid(), signal.SIGKILL)


record, save, mark = (
    RunRecords.batch_end,
    checkpoints.CompleteCheckpointSaver._save_checkpoint,
    checkpoints.mark_complete,
)


def batch_end(self, state, logger):
    record(self, state, logger)
    kill("update", state.timestamp.batch.value)


def save_checkpoint(self, state, logger):
    save(self, state, logger)
    kill("saved", state.timestamp.batch.value)


def mark_complete(folder, batch, token):
    kill("saving", batch)
    mark(folder, batch, token)


RunRecords.batch_end = batch_end
checkpoints.CompleteCheckpointSaver._save_checkpoint = save_checkpoint
checkpoints.mark_complete = mark_complete

sys.argv[0] = str(Path(__file__).parents[2] / "launch")
runpy.run_path(sys.argv[0], run_name="__main__")
