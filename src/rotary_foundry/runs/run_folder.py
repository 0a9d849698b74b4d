"""The files in `runs/<run_name>/`, and functions that read them without torch.

    lock.json                 the process that works in the folder, while it does (run_lock.py)
    recipe.yaml plan.json     the recipe with all overrides, and its plan
    tokenizer/                a copy of the corpus' tokenizer
    rows.json                 a digest of the rows of each source and length, which must be the same at a resume
    metrics.jsonl eval.jsonl  one line per update, one line per evaluation
    rollbacks.jsonl           one line per rollback: the ledger
    environment.json          working directory, packages, devices and commit at the last start
    checkpoints/ba<update>/   sharded checkpoints, each with a COMPLETE file once it is whole
    abandoned/<n>/ba<update>/ the checkpoints that the n-th rollback abandoned
    logs/rank<N>.log          every rank's log
    wandb_id wandb/           W&B's files, and tensorboard/ TensorBoard's, if the recipe has that logger
    export/                   the exported model
    evaluations/<model>/<suite>/  results of `rotary-foundry evaluate`: result.json, picture.png
    report.html report/       the run's report and its pictures

Composer's `latest` link is not used. It names a checkpoint whether or not all of its parts were written. While it is
replaced there is no link, and Composer would start afresh. COMPLETE is written by rename after all ranks have written.
It lists the parts and their sizes, and is removed before anything in the folder is overwritten. The first checkpoint of
a run also has the file FIRST, from before its parts are written: if it never became complete, the run starts afresh.

A rollback takes effect when its line is in the ledger. Checkpoints and records say how many rollbacks came before them.
They are abandoned if a rollback after them went back to an earlier token. So a crash after the line is written, but
before the checkpoints are moved, loses nothing.
"""

import json
import logging
import shutil
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from rotary_foundry.recipe.plan import Rollback
from rotary_foundry.runs.record_files import each_line, read_lines, write_whole
from rotary_foundry.runs.record_values import COUNT, PLACE, complaint, plan_complaint
from rotary_foundry.utils.errors import ConfigurationError, DataError, FoundryError
from rotary_foundry.utils.json_text import parse_json, read_object

if TYPE_CHECKING:
    from rotary_foundry.recipe import Recipe

log = logging.getLogger(__name__)

COMPLETE = "COMPLETE"
FIRST = "FIRST"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")  # of a prepared corpus
GENERATION = "generation_config.json"  # next to them, if the tokenizer came with a decoder
WORKING_DIRECTORY = "working_directory"  # a key of environment.json


@dataclass(frozen=True)
class CompleteCheckpoint:
    """A checkpoint folder that has all of its parts."""

    folder: Path
    batch: int
    token: int
    rollbacks: int  # how many the run had before it
    watch: dict  # the state of the detectors of trouble
    files: dict[str, int]  # the parts that all ranks wrote, and their sizes in bytes


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run."""

    path: Path

    @classmethod
    def of(cls, recipe: "Recipe") -> "RunFolder":
        """Return the folder of the run of a recipe, or of a configuration that becomes a recipe."""
        return cls(Path(recipe.runs_folder) / recipe.run_name)

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer"

    @property
    def rows(self) -> Path:
        return self.path / "rows.json"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def evaluations(self) -> Path:
        return self.path / "eval.jsonl"

    @property
    def results(self) -> list[Path]:
        """Return the results of `rotary-foundry evaluate`, one file per model and suite."""
        return sorted(self.path.glob("evaluations/*/*/result.json"))

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def export(self) -> Path:
        return self.path / "export"

    @property
    def wandb_id(self) -> Path:
        return self.path / "wandb_id"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def ledger(self) -> Path:
        return self.path / "rollbacks.jsonl"

    def located(self, path: str) -> str:
        """Return a path in the run's recipe as a path that is valid from here.

        A relative path is relative to the folder in which the run was last started. If it exists only in the current
        folder, as after everything was moved together, it is relative to that one.
        """
        try:
            started_in = Path(read_object(self.environment)[WORKING_DIRECTORY])
        except (DataError, KeyError, TypeError):  # damaged, or made by an earlier version
            return path
        there = started_in / path
        is_here = started_in == Path.cwd() or (Path(path).exists() and not there.exists())
        return path if is_here else str(there)

    def check_is_run(self) -> None:
        """Check that a run has written to this folder. Files may be missing.

        Raises:
            ConfigurationError: it has neither a plan nor a recipe.
        """
        if not self.plan.is_file() and not self.recipe.is_file():
            raise ConfigurationError(
                f"{self.path}: no run there (it has neither {self.plan.name} nor {self.recipe.name})"
            )

    def read_plan(self) -> dict:
        """Return the content of `plan`.

        Raises:
            DataError: it is missing or damaged.
        """
        content = read_object(self.plan)
        if wrong := plan_complaint(content):
            raise DataError(f"{self.plan}: {wrong}; `rotary-foundry plan {self.recipe} --json` prints it anew")
        return content

    def rollbacks(self) -> list[Rollback]:
        """Return the rollbacks of the run so far, in order; a damaged line is a DataError."""
        names = {field.name for field in fields(Rollback)}
        return [
            Rollback(**{name: value for name, value in line.items() if name in names})
            for line in read_lines(self.ledger)
        ]

    def newest_checkpoint(
        self, at_most: int | None = None, elsewhere: Iterable[CompleteCheckpoint] = ()
    ) -> CompleteCheckpoint | None:
        """Return the newest complete checkpoint of the kept trajectory (up to token `at_most`); None if there is none.

        Checkpoints `elsewhere` are candidates too. If two have the same token, the one in this folder is returned.

        Raises:
            FoundryError: there are checkpoints but none is usable. Such a run never starts afresh, unless it was killed
                while it wrote its first checkpoint.
        """
        folders = [path for path in self.checkpoints.glob("*") if path.is_dir()]
        kept = kept_checkpoints([*elsewhere, *complete_checkpoints(folders)], self.rollbacks())
        if not kept:
            check_never_complete(self.checkpoints, ([file.name for file in folder.iterdir()] for folder in folders))
        fitting = [checkpoint for checkpoint in kept if at_most is None or checkpoint.token <= at_most]
        return fitting[-1] if fitting else None

    def tidy_up(self) -> None:
        """Move the checkpoints that rollbacks abandoned to `abandoned/<n>/`, where no resume looks for them."""
        rollbacks = self.rollbacks()
        for checkpoint in complete_checkpoints(self.checkpoints.glob("ba*")):
            number = abandoned_by(checkpoint.token, checkpoint.rollbacks, rollbacks)
            if number is not None:
                target = self.path / "abandoned" / str(number)
                target.mkdir(parents=True, exist_ok=True)
                checkpoint.folder.rename(target / checkpoint.folder.name)

    def records(self, path: Path, keys: Sequence[str] | None = None, problems: list[str] | None = None) -> list[dict]:
        """Return the lines of `metrics` or `evaluations` that no rollback abandoned, one per batch, in order.

        Whole lines of a long run take gigabytes. With `keys`, a line has only these keys; a missing one is None.
        A damaged line is treated as by `each_line`.
        """
        rollbacks = self.rollbacks()
        kept = {
            line["batch"]: line if keys is None else {key: line.get(key) for key in keys}
            for line in each_line(path, problems=problems)
            if abandoned_by(line["token"], line.get("rollbacks", 0), rollbacks) is None
        }
        return sorted(kept.values(), key=lambda line: line["batch"])


def abandoned_by(token: int, rollbacks_before: int, rollbacks: Sequence[Rollback]) -> int | None:
    """Return which rollback (from 1) abandoned what was written at `token` after `rollbacks_before`; None if none."""
    for number, rollback in enumerate(rollbacks[rollbacks_before:], rollbacks_before + 1):
        if token > rollback.to_token:
            return number
    return None


def kept_checkpoints(
    checkpoints: Iterable[CompleteCheckpoint], rollbacks: Sequence[Rollback]
) -> list[CompleteCheckpoint]:
    """Return the checkpoints that no rollback abandoned, oldest first."""
    kept = [found for found in checkpoints if abandoned_by(found.token, found.rollbacks, rollbacks) is None]
    return sorted(kept, key=lambda checkpoint: checkpoint.token)


def check_never_complete(where: object, checkpoints: Iterable[Collection[str]]) -> None:
    """Check that checkpoints, none of them usable, are what killed runs left of their first one.

    Args:
        where: the place of the checkpoints, for the error.
        checkpoints: the names of each one's files.

    Raises:
        FoundryError: another checkpoint is among them, so the run must not start afresh.
    """
    checkpoints = list(checkpoints)
    if any(FIRST not in names or COMPLETE in names for names in checkpoints):
        raise FoundryError(
            f"{where}: {len(checkpoints)} checkpoint(s) and none of them complete; move the folder away to start afresh"
        )


def complete_checkpoints(folders: Iterable[Path]) -> list[CompleteCheckpoint]:
    """Return the complete checkpoints in some folders, oldest first."""
    found = [checkpoint for folder in folders if (checkpoint := read_checkpoint(folder)) is not None]
    return sorted(found, key=lambda checkpoint: checkpoint.token)


def read_checkpoint(folder: Path) -> CompleteCheckpoint | None:
    """Return the checkpoint in a folder, or None if it is not complete."""
    try:
        content = (folder / COMPLETE).read_bytes()
    except OSError as error:
        log.warning("%s: not complete, so not used (%s)", folder, error)
        return None
    return check_complete(folder, folder, content, lambda name: (folder / name).stat().st_size)


def check_complete(
    folder: Path, where: object, complete: bytes, size_of: Callable[[str], int]
) -> CompleteCheckpoint | None:
    """Return the checkpoint that a COMPLETE file describes, or None if its parts differ from that.

    Args:
        folder: the folder of the checkpoint, which may still be missing.
        where: the place of the checkpoint, for the log.
        complete: the content of its COMPLETE file.
        size_of: returns the size in bytes of a part by its name; raises OSError or KeyError if the part is missing.
    """
    try:
        content = parse_json(complete)
        if outside := [name for name in content["files"] if Path(name).name != name or name == ".."]:
            raise ValueError(f"lists a file outside of the checkpoint, {outside[0]!r}")
        sizes = {name: size_of(name) for name in content["files"]}
        if sizes != content["files"]:
            raise ValueError(f"its parts do not have the sizes that {COMPLETE} lists")
        if wrong := complaint(content, PLACE, {"rollbacks": COUNT}):
            raise ValueError(wrong)
        return CompleteCheckpoint(
            folder,
            content["batch"],
            content["token"],
            content.get("rollbacks", 0),
            content.get("watch", {}),
            content["files"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s: not complete, so not used (%s)", where, error)
        return None


def mark_complete(checkpoint: CompleteCheckpoint) -> None:
    """Write a checkpoint folder's COMPLETE file atomically."""
    folder = checkpoint.folder
    content = {key: value for key, value in asdict(checkpoint).items() if key != "folder"}
    write_whole(folder / COMPLETE, json.dumps(content) + "\n")


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint folder if it exists; COMPLETE first, so that it never looks complete."""
    (folder / COMPLETE).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)
