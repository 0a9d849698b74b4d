"""`launch/`, tampered with by the environment: `composer … tampered_launch.py RECIPE [key=value …]`.

KILL_AT is a SIGKILL of the rank at `update:N` (at its end, when its line is written, before anything is saved),
`saved:N` (as soon as its checkpoint is complete), `saving:N` (while that is being written: its parts are there,
COMPLETE is not), `again:N` (the end of update N, trained a second time after a rollback), or `ledger:N` (as soon as
rollback N is in the ledger, before anything is moved). KILL_RANK: of this rank alone. SIGNAL: another signal than
SIGKILL. RAISE: instead of a signal, an exception of this type with the message "boom". FILE_LIMIT: instead of a signal,
no file can grow beyond so many bytes any more; a write then fails as on a full disk, by another error number.
SHARDS_COME=badly makes a remote slow with the shards of source `two` (a warning is due), and those of source `one`
arrive cut short the first time.
"""

import os
import resource
import runpy
import signal
import sys
import time
from pathlib import Path

from streaming.base.storage.download import LocalDownloader

from rotary_foundry.callbacks import checkpoint_saver as checkpoints
from rotary_foundry.callbacks.run_records import RunRecords
from rotary_foundry.data import checked_shards
from rotary_foundry.runs.run_folder import RunFolder
from rotary_foundry.utils.errors import DataError

MOMENT, _, NUMBER = os.environ.get("KILL_AT", "never:0").partition(":")
RANKS = {os.environ["RANK"], os.environ.get("KILL_RANK", os.environ["RANK"])}
FILE_LIMIT = int(os.environ.get("FILE_LIMIT", 0))
RAISE = {"ValueError": ValueError, "DataError": DataError}.get(os.environ.get("RAISE"))
SIGNAL = signal.Signals[os.environ.get("SIGNAL", "SIGKILL")]


def kill(moment: str, number: int) -> None:
    if (moment, number) == (MOMENT, int(NUMBER)) and len(RANKS) == 1:
        if FILE_LIMIT:
            resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, FILE_LIMIT))
        elif RAISE:
            raise RAISE("boom")
        else:
            os.kill(os.getpid(), SIGNAL)


record, save, mark, tidy_up = (
    RunRecords.batch_end,
    checkpoints.CompleteCheckpointSaver.write,
    checkpoints.mark_complete,
    RunFolder.tidy_up,
)


def batch_end(self, state, logger):
    record(self, state, logger)
    self.wait()
    kill("again" if self.rollbacks else "update", state.timestamp.batch.value)


def save_checkpoint(self, state, logger):
    save(self, state, logger)
    kill("saved", state.timestamp.batch.value)


def mark_complete(checkpoint):
    kill("saving", checkpoint.batch)
    mark(checkpoint)


def tidy_up_after_the_ledger(self):
    kill("ledger", len(self.rollbacks()))
    tidy_up(self)


download = LocalDownloader._download_file_impl
arrived = set()


def download_badly(self, remote, local, timeout):
    if remote.endswith(".zstd") and "/two/" in remote:
        time.sleep(2.5 * checked_shards.STALL_SECONDS)
    download(self, remote, local, timeout)
    if remote.endswith(".zstd") and "/one/" in remote and remote not in arrived:
        arrived.add(remote)
        os.truncate(local, os.path.getsize(local) // 2)


if os.environ.get("SHARDS_COME") == "badly":
    LocalDownloader._download_file_impl = download_badly
    checked_shards.STALL_SECONDS = 0.5

RunRecords.batch_end = batch_end
checkpoints.CompleteCheckpointSaver.write = save_checkpoint
checkpoints.mark_complete = mark_complete
RunFolder.tidy_up = tidy_up_after_the_ledger

sys.argv[0] = str(Path(__file__).parents[2] / "launch")
runpy.run_path(sys.argv[0], run_name="__main__")
