"""Copy a run's checkpoints to an S3 object store (`save_folder`), for machines that lose their disks.

`<save_folder>/<run_name>/` holds what a resume needs: checkpoints, ledger, recipe, plan and records, with the same
names as in the run's folder. The folder stays the working copy. Training writes to it first, and every rank uploads the
files that it wrote itself, so nodes need not share a disk.

- The marker COMPLETE is uploaded last, and is removed before anything in its checkpoint is overwritten. So a checkpoint
  is visible only when it is complete. The ledger and the records are uploaded before a checkpoint, so that every
  complete checkpoint has its history.
- A start and a rollback need the store, because it may hold a newer checkpoint than the folder. An update does not need
  it. A checkpoint that cannot be uploaded gives a warning on all ranks, and the next upload is tried again. A start
  uploads the newest checkpoint if only the folder has it, so repeating the command after a run's end uploads the last
  one.
- Checkpoints that a rollback abandoned stay in place until the run reaches them again and overwrites them. The ledger
  says which are abandoned, so nothing has to be moved, and a crash cannot leave a partial move.
- Training waits for the upload. So two saves never overlap, and all ranks know the outcome of one before the next. No
  rank waits longer than `dist_timeout` for another's upload.
"""

import logging
import os
import re
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from composer.utils import dist

from rotary_foundry.recipe import Recipe
from rotary_foundry.runs.run_folder import (
    COMPLETE,
    FIRST,
    GENERATION,
    TOKENIZER_FILES,
    CompleteCheckpoint,
    RunFolder,
    check_complete,
    check_never_complete,
    kept_checkpoints,
    mark_complete,
    read_checkpoint,
    remove_checkpoint,
)
from rotary_foundry.utils.errors import FoundryError
from rotary_foundry.utils.object_store import Bucket

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints/"


def open_store(recipe: Recipe, folder: RunFolder) -> "CheckpointStore | None":
    """Return the store of a run, or None if its recipe has no `save_folder`."""
    return None if recipe.save_folder is None else CheckpointStore(recipe.save_folder, folder)


class CheckpointStore:
    """The files of a run in an object store. Every method except `save` raises a FoundryError if the store fails.

    Args:
        save_folder: `s3://bucket/path`.
        folder: the run's folder; its name is added to the path.
    """

    def __init__(self, save_folder: str, folder: RunFolder):
        self.folder = folder
        self.url = f"{save_folder.rstrip('/')}/{folder.path.name}"
        self.bucket = Bucket(self.url)

    def checkpoints(self) -> list[CompleteCheckpoint]:
        """List the complete checkpoints in the store, oldest first, each with its local folder."""
        with self.bucket.reported():
            return self._complete(self.bucket.sizes(CHECKPOINTS))

    def bring_newest(self) -> CompleteCheckpoint | None:
        """Make folder and store agree on the ledger and the newest checkpoint; return the latter. Call on one rank.

        If the store has a newer checkpoint, its recipe is downloaded too, and its records if the local ones end
        earlier.

        Raises:
            FoundryError: the store fails; or it has checkpoints but none is complete; or its ledger and the folder's
                contradict each other.
        """
        with self.bucket.reported():
            stored = self.bucket.sizes()
            self._agree_on_ledger(stored)
            complete = self._complete(stored)
            newest = self.folder.newest_checkpoint(elsewhere=complete)
            if newest is None:
                torn = defaultdict(list)
                for name in stored:
                    if name.startswith(CHECKPOINTS):
                        torn[name.split("/")[1]].append(name.rsplit("/")[-1])
                check_never_complete(f"{self.url}/{CHECKPOINTS}", torn.values())
            elif read_checkpoint(newest.folder) != newest:
                for path in self._records():
                    size = path.stat().st_size if path.suffix == ".jsonl" and path.exists() else -1
                    if stored.get(self._name(path), -1) > size:
                        self._get(path)
                self.fetch(newest)
            elif newest not in complete:
                self._begin(newest)
                self._put(newest, newest.files)
                self._finish(newest)
            return newest

    def try_out(self) -> float:
        """Write, read and remove a small object, and return the seconds that this took."""
        start = time.monotonic()
        name = f".doctor.{socket.gethostname()}.{os.getpid()}"  # several nodes of a run may test the store at once
        with self.bucket.reported():
            self.bucket.write(name, name.encode())
            self.bucket.read(name)
            self.bucket.remove(name)
        return time.monotonic() - start

    def fetch(self, checkpoint: CompleteCheckpoint) -> None:
        """Download a checkpoint to its folder, unless it is already there."""
        if checkpoint.folder.exists() and read_checkpoint(checkpoint.folder) == checkpoint:
            return
        remove_checkpoint(checkpoint.folder)
        with self.bucket.reported():
            for name in checkpoint.files:
                self._get(checkpoint.folder / name)
        mark_complete(checkpoint)

    def save(
        self,
        checkpoint: CompleteCheckpoint,
        own: list[str],
        outdated: Callable[[list[CompleteCheckpoint]], list[CompleteCheckpoint]] | None,
    ) -> bool:
        """Upload a checkpoint that is complete in the run's folder. Call it on every rank.

        If the upload fails, print a warning and return False.

        Args:
            checkpoint: the checkpoint; the same on every rank.
            own: the files of the checkpoint that this rank wrote.
            outdated: selects, from the kept trajectory's checkpoints (oldest first), those to remove; None: keep all.
        """
        first = dist.get_global_rank() == 0
        steps = [
            lambda: self._begin(checkpoint) if first else None,
            lambda: self._put(checkpoint, own),
            lambda: self._finish(checkpoint, outdated) if first else None,
        ]
        for step in steps:
            failure, removed = None, None
            try:
                with self.bucket.reported():
                    removed = step()
            except FoundryError as error:
                failure = str(error)
            outcomes = dist.all_gather_object((failure, removed))
            failures = [failure for failure, _ in outcomes if failure is not None]
            if failures:
                if first:
                    _warn(
                        f"warning: {checkpoint.folder.name} could not be uploaded to the store; it is complete in "
                        f"{checkpoint.folder}, training continues, and the next upload is tried again: {failures[0]}"
                    )
                return False
        if dist.get_local_rank() == 0:
            for folder in outcomes[0][1]:
                remove_checkpoint(folder)  # a node with a disk of its own has only a part of it
        return True

    def _begin(self, checkpoint: CompleteCheckpoint) -> None:
        if self.folder.ledger.exists():
            self._upload(self.folder.ledger)
        self._remove(checkpoint)
        if (first := checkpoint.folder / FIRST).exists():
            self._upload(first)

    def _put(self, checkpoint: CompleteCheckpoint, names: Iterable[str]) -> None:
        for name in names:
            self._upload(checkpoint.folder / name)

    def _finish(self, checkpoint: CompleteCheckpoint, outdated: Callable | None = None) -> list[Path]:
        for path in self._records():
            if path.exists():
                self._upload(path)
        self._upload(checkpoint.folder / COMPLETE)
        if outdated is None:
            return []
        removed = outdated(kept_checkpoints(self.checkpoints(), self.folder.rollbacks()))
        for old in removed:
            self._remove(old)
            remove_checkpoint(old.folder)
        return [old.folder for old in removed]

    def _records(self) -> list[Path]:
        folder = self.folder
        tokenizer = [folder.tokenizer / name for name in (*TOKENIZER_FILES, GENERATION)]
        return [
            folder.recipe,
            folder.plan,
            folder.rows,
            *tokenizer,
            folder.metrics,
            folder.evaluations,
            folder.wandb_id,
        ]

    def _agree_on_ledger(self, stored: dict[str, int]) -> None:
        """Copy the longer of the two ledgers, the store's and the folder's, over the shorter."""
        ledger = self.folder.ledger
        here = ledger.read_bytes() if ledger.exists() else b""
        here = here[: here.rfind(b"\n") + 1]  # ignore a last line without a newline: its write was interrupted
        there = self.bucket.read(ledger.name) if ledger.name in stored else b""
        if here.startswith(there):
            if here != there:
                self._upload(ledger)
        elif there.startswith(here):
            self._get(ledger)
        else:
            raise FoundryError(
                f"{ledger} and {self.url}/{ledger.name} list different rollbacks, so two runs continued under one "
                f"name; move {self.folder.path} away to resume the store's, or set another run_name"
            )

    def _complete(self, stored: dict[str, int]) -> list[CompleteCheckpoint]:
        found = []
        for name in stored:
            place = name.removesuffix(COMPLETE)
            if not re.fullmatch(rf"{CHECKPOINTS}[\w-]+/{COMPLETE}", name):  # a key may contain ".."
                continue
            sizes = {part.removeprefix(place): size for part, size in stored.items() if part.startswith(place)}
            folder = self.folder.path / place
            found.append(check_complete(folder, f"{self.url}/{place}", self.bucket.read(name), sizes.__getitem__))
        complete = [checkpoint for checkpoint in found if checkpoint is not None]
        return sorted(complete, key=lambda checkpoint: checkpoint.token)

    def _remove(self, checkpoint: CompleteCheckpoint) -> None:
        place = f"{CHECKPOINTS}{checkpoint.folder.name}/"
        for name in sorted(self.bucket.sizes(place), key=lambda name: name != place + COMPLETE):  # COMPLETE first
            self.bucket.remove(name)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder.path).as_posix()

    def _upload(self, path: Path) -> None:
        self.bucket.upload(self._name(path), path)

    def _get(self, path: Path) -> None:
        self.bucket.download(self._name(path), path)


def _warn(message: str) -> None:
    log.warning(message)
    print(message, flush=True)
