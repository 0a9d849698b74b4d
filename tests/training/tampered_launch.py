"""`launch/`, tampered with by the environment: `composer … tampered_launch.py RECIPE [key=value …]`.

KILL_AT is a SIGKILL of the rank at `update:N` (the end of update N, before anything is saved), `saved:N` (as soon as
its checkpoint is complete), or `saving:N` (while that is being written: its parts are there, COMPLETE is not).
ROWS_DEALT is a small number of rows in place of the many that a loader deals out before it starts anew.
"""

import os
import runpy
import signal
import sys
from pathlib import Path

from encoder_foundry.callbacks import checkpoints
from encoder_foundry.callbacks.run_records import RunRecords
from encoder_foundry.data import stream

MOMENT, _, UPDATE = os.environ.get("KILL_AT", "never:0").partition(":")
stream.MAX_ROWS_DEALT = int(os.environ.get("ROWS_DEALT", stream.MAX_ROWS_DEALT))


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


def mark_complete(checkpoint):
    kill("saving", checkpoint.batch)
    mark(checkpoint)


RunRecords.batch_end = batch_end
checkpoints.CompleteCheckpointSaver._save_checkpoint = save_checkpoint
checkpoints.mark_complete = mark_complete

sys.argv[0] = str(Path(__file__).parents[2] / "launch")
runpy.run_path(sys.argv[0], run_name="__main__")
