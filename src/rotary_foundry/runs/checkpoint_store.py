"""A run's checkpoints in an S3 object store (`save_folder`), for machines whose disks do not outlive them.

What a resume needs of a run lies at `<save_folder>/<run_name>/` under the names that it has in the run's folder:
checkpoints, ledger, recipe, plan, records. The folder stays the working copy. Training writes there first, and every
rank uploads the files that it wrote itself, so nodes need not share a disk.

- COMPLETE is uploaded last, and removed before anything under its checkpoint is overwritten: an object appears whole or
  not at all. Before a checkpoint come the ledger and the records, so one that can be chosen never lacks its past.
- A start and a rollback need the store: what cannot be asked may hold a newer checkpoint. An update does not. A
  checkpoint that cannot be uploaded is a warning, on all ranks alike, and the next one is tried again; a start uploads
  the newest one if only the folder has it, so the command given again after a run's end brings the last one over.
- What a rollback abandoned stays where it is until the run comes by again and overwrites it. The ledger says what it
  is worth, so nothing has to be moved, and no crash can leave it half moved.
- Training waits for the upload. Two saves never overlap so, and all ranks know what became of one before the next. No
  rank may wait longer than `dist_timeout` for another's.
"""

import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from composer.utils import dist

from rotary_foundry.recipe import Recipe
from rotary_foundry.runs.run_folder import (
    COMPLETE,
    TOKENIZER_FILES,
    CompleteCheckpoint,
    RunFolder,
    check_complete,
    kept_checkpoints,
    mark_complete,
    none_complete,
    read_checkpoint,
    remove_checkpoint,
)
from rotary_foundry.utils.errors import FoundryError
from rotary_foundry.utils.object_store import Bucket

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints/"


def open_store(recipe: Recipe, folder: RunFolder) -> "CheckpointStore | None":
    """The store of a run, or None if its recipe has no `save_folder`."""
    return None if recipe.save_folder is None else CheckpointStore(recipe.save_folder, folder)


class CheckpointStore:
    """A run's part of an object store. Every method raises a FoundryError if the store cannot be used, but for `save`.

    Args:
        save_folder: `s3://bucket/path`.
        folder: of the run; its name is added to the path.
    """

    def __init__(self, save_folder: str, folder: RunFolder):
        self.folder = folder
        self.url = f"{save_folder.rstrip('/')}/{folder.path.name}"
        self.bucket = Bucket(self.url)

    def checkpoints(self) -> list[CompleteCheckpoint]:
        """The complete ones, oldest first, each with the folder in which it would lie here."""
        with self.bucket.reported():
            return self._complete(self.bucket.sizes(CHECKPOINTS))

    def bring_newest(self) -> CompleteCheckpoint | None:
        """Make folder and store agree on the ledger and the newest checkpoint, and return that; on one rank.

        A newer one in the store comes with its recipe, and with its records if those here do not go as far.

        Raises:
            FoundryError: the store cannot be used; it has checkpoints, and none of them is complete; its ledger and the
                folder's have parted.
        """
        with self.bucket.reported():
            stored = self.bucket.sizes()
            self._agree_on_ledger(stored)
            complete = self._complete(stored)
            newest = self.folder.newest_checkpoint(elsewhere=complete)
            if newest is None:
                torn = {name.split("/")[1] for name in stored if name.startswith(CHECKPOINTS)}
                if torn:
                    raise none_complete(f"{self.url}/{CHECKPOINTS}", len(torn))
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
        """Write a small object, read it and remove it: the seconds that took."""
        start = time.monotonic()
        name = f".doctor.{socket.gethostname()}.{os.getpid()}"  # the nodes of a run may try at a time
        with self.bucket.reported():
            self.bucket.write(name, name.encode())
            self.bucket.read(name)
            self.bucket.remove(name)
        return time.monotonic() - start

    def fetch(self, checkpoint: CompleteCheckpoint) -> None:
        """Download a checkpoint to its folder, unless it is there already."""
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
        """Upload a checkpoint that is complete in the run's folder; on every rank. A failure is a warning, and False.

        Args:
            checkpoint: the same on every rank.
            own: those of its files that this rank wrote.
            outdated: which of the kept trajectory's checkpoints, oldest first, to remove; None: all are kept.
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
                        f"warning: {checkpoint.folder.name} is not in the store as it should be; it is complete in "
                        f"{checkpoint.folder}, training goes on, and the next checkpoint is tried again: {failures[0]}"
                    )
                return False
        if dist.get_local_rank() == 0:
            for folder in outcomes[0][1]:
                remove_checkpoint(folder)  # what there is of it on a node with a disk of its own
        return True

    def _begin(self, checkpoint: CompleteCheckpoint) -> None:
        if self.folder.ledger.exists():
            self._upload(self.folder.ledger)
        self._remove(checkpoint)

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
        tokenizer = [folder.tokenizer / name for name in TOKENIZER_FILES]
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
        """Give the longer ledger to the one that has the shorter."""
        ledger = self.folder.ledger
        here = ledger.read_bytes() if ledger.exists() else b""
        here = here[: here.rfind(b"\n") + 1]  # a line without its end was never written
        there = self.bucket.read(ledger.name) if ledger.name in stored else b""
        if here.startswith(there):
            if here != there:
                self._upload(ledger)
        elif there.startswith(here):
            self._get(ledger)
        else:
            raise FoundryError(
                f"{ledger} and {self.url}/{ledger.name} tell of different rollbacks, so two runs went on under one "
                f"name; move {self.folder.path} away to go on with the store's, or give another run_name"
            )

    def _complete(self, stored: dict[str, int]) -> list[CompleteCheckpoint]:
        found = []
        for name in stored:
            place = name.removesuffix(COMPLETE)
            if not re.fullmatch(rf"{CHECKPOINTS}[\w-]+/{COMPLETE}", name):  # "..", too, may stand in a key
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
