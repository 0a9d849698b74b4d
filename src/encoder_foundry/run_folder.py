"""What lies in `runs/<run_name>/`, and how to read it without torch.

    recipe.yaml plan.json     the recipe with all overrides, and its plan
    metrics.jsonl eval.jsonl  a line an update, a line an evaluation
    checkpoints/ba<update>/   sharded checkpoints, each with a COMPLETE file once it is whole
    logs/rank<N>.log          every rank's log
    export/                   the exported model

Composer's `latest` link is not used: it names a checkpoint whether or not all of its parts were written, and while it
is being made anew there is none, which Composer takes for a fresh start. COMPLETE is written by rename after all ranks
have written; it lists the parts and their sizes, and is removed before anything in the folder is overwritten.
"""

import json
import logging
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from encoder_foundry.errors import FoundryError

log = logging.getLogger(__name__)

COMPLETE = "COMPLETE"


@dataclass(frozen=True)
class CompleteCheckpoint:
    """A checkpoint folder all of whose parts are there."""

    folder: Path
    batch: int
    token: int


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def evaluations(self) -> Path:
        return self.path / "eval.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def export(self) -> Path:
        return self.path / "export"

    def newest_checkpoint(self) -> CompleteCheckpoint | None:
        """The newest complete checkpoint, or None if the run has not saved any.

        Raises:
            FoundryError: checkpoints are there, but none is complete: that is never taken for a fresh start.
        """
        folders = [path for path in self.checkpoints.glob("*") if path.is_dir()]
        complete = complete_checkpoints(folders)
        if folders and not complete:
            raise FoundryError(
                f"{self.checkpoints}: {len(folders)} checkpoint(s) and none of them complete; "
                "move the folder away to start afresh"
            )
        return complete[-1] if complete else None


def complete_checkpoints(folders: Iterable[Path]) -> list[CompleteCheckpoint]:
    """The complete ones of some checkpoint folders, oldest first."""
    found = [checkpoint for folder in folders if (checkpoint := read_checkpoint(folder)) is not None]
    return sorted(found, key=lambda checkpoint: checkpoint.token)


def read_checkpoint(folder: Path) -> CompleteCheckpoint | None:
    """The checkpoint in a folder, or None if it is not complete."""
    try:
        content = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in content["files"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s: not complete, so not used (%s)", folder, error)
        return None
    if sizes != content["files"]:
        log.warning("%s: not used, since its parts do not have the sizes that %s lists", folder, COMPLETE)
        return None
    return CompleteCheckpoint(folder, content["batch"], content["token"])


def mark_complete(folder: Path, batch: int, token: int) -> None:
    """Write a checkpoint folder's COMPLETE file, whole or not at all."""
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.name != COMPLETE}
    writing = folder.parent / f".{folder.name}.{COMPLETE}"
    writing.write_text(json.dumps({"batch": batch, "token": token, "files": files}) + "\n", encoding="utf-8")
    writing.replace(folder / COMPLETE)


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint folder, if it is there, so that it never looks whole while it goes."""
    (folder / COMPLETE).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)


def append_record(path: Path, record: dict) -> None:
    """Append a line to a `.jsonl` file, cutting off one that a killed process left without its end."""
    with open(path, "ab+") as file:
        end = file.seek(0, 2)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps(record).encode() + b"\n")


def read_records(path: Path) -> list[dict]:
    """The lines that hold of a `metrics.jsonl` or `eval.jsonl`, by batch: a resumed run writes some batches again."""
    if not path.exists():
        return []
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return sorted({record["batch"]: record for record in records}.values(), key=lambda record: record["batch"])
