"""What lies in `runs/<run_name>/`, and how to read it without torch.

    lock.json                 while a launch is at work here: which (run_lock.py)
    recipe.yaml plan.json     the recipe with all overrides, and its plan
    tokenizer/                what the model's ids mean: a copy of the corpus' own
    rows.json                 a digest of the rows of each source and length, which a resume has to find again
    metrics.jsonl eval.jsonl  a line an update, a line an evaluation
    rollbacks.jsonl           a line a rollback
    environment.json          working directory, packages, devices and commit, as they were at the last start
    checkpoints/ba<update>/   sharded checkpoints, each with a COMPLETE file once it is whole
    abandoned/<n>/ba<update>/ those that the n-th rollback left behind
    logs/rank<N>.log          every rank's log
    wandb_id wandb/           W&B's, and tensorboard/ TensorBoard's, where the recipe has that logger
    export/                   the exported model
    evaluations/<model>/<suite>/  what `rotary-foundry evaluate` found: result.json, picture.png
    report.html report/       the run's page and its pictures

Composer's `latest` link is not used: it names a checkpoint whether or not all of its parts were written, and while it
is being made anew there is none, which Composer takes for a fresh start. COMPLETE is written by rename after all ranks
have written; it lists the parts and their sizes, and is removed before anything in the folder is overwritten.

A rollback happens by its line in `rollbacks.jsonl`. Whatever was written under fewer rollbacks than are in that ledger,
and lies beyond where one of the later ones went back to, is abandoned: checkpoints and records say under how many they
were written, so a crash between that line and the tidying up loses nothing.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from rotary_foundry.recipe.plan import Rollback
from rotary_foundry.utils.errors import FoundryError

if TYPE_CHECKING:
    from rotary_foundry.recipe import Recipe

log = logging.getLogger(__name__)

COMPLETE = "COMPLETE"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")  # of a prepared corpus
GENERATION = "generation_config.json"  # beside them, if the tokenizer came with a decoder
WORKING_DIRECTORY = "working_directory"  # a key of environment.json


@dataclass(frozen=True)
class CompleteCheckpoint:
    """A checkpoint folder all of whose parts are there."""

    folder: Path
    batch: int
    token: int
    rollbacks: int  # how many the run had had
    watch: dict  # what the detectors of trouble remembered
    files: dict[str, int]  # its parts, by whichever rank, and their sizes in bytes


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run."""

    path: Path

    @classmethod
    def of(cls, recipe: "Recipe") -> "RunFolder":
        """The folder of a recipe's run, or of what is yet to become a recipe."""
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
        """A file a model and suite that `rotary-foundry evaluate` measured."""
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
        """Return where a path in the run's recipe leads from here.

        A relative one is relative to the folder in which the run was last started, or to the current one if it leads to
        something only from there, as when all was moved together.
        """
        try:
            started_in = Path(json.loads(self.environment.read_text(encoding="utf-8"))[WORKING_DIRECTORY])
        except (OSError, ValueError, KeyError, TypeError):  # made by an earlier version
            return path
        there = started_in / path
        is_here = started_in == Path.cwd() or (Path(path).exists() and not there.exists())
        return path if is_here else str(there)

    def rollbacks(self) -> list[Rollback]:
        """The rollbacks that the run has had, in order."""
        names = {field.name for field in fields(Rollback)}
        return [
            Rollback(**{name: value for name, value in line.items() if name in names})
            for line in read_lines(self.ledger)
        ]

    def newest_checkpoint(
        self, at_most: int | None = None, elsewhere: Iterable[CompleteCheckpoint] = ()
    ) -> CompleteCheckpoint | None:
        """The newest complete checkpoint of the kept trajectory, up to a token if one is given; None if there is none.

        Those `elsewhere` are chosen from as well; of two at the same token, the one that is here is taken.

        Raises:
            FoundryError: checkpoints are there, but none can be used: that is never taken for a fresh start.
        """
        folders = [path for path in self.checkpoints.glob("*") if path.is_dir()]
        kept = kept_checkpoints([*elsewhere, *complete_checkpoints(folders)], self.rollbacks())
        if folders and not kept:
            raise none_complete(self.checkpoints, len(folders))
        fitting = [checkpoint for checkpoint in kept if at_most is None or checkpoint.token <= at_most]
        return fitting[-1] if fitting else None

    def tidy_up(self) -> None:
        """Move the checkpoints that rollbacks left behind to `abandoned/<n>/`, where they are not looked for."""
        rollbacks = self.rollbacks()
        for checkpoint in complete_checkpoints(self.checkpoints.glob("ba*")):
            number = abandoned_by(checkpoint.token, checkpoint.rollbacks, rollbacks)
            if number is not None:
                target = self.path / "abandoned" / str(number)
                target.mkdir(parents=True, exist_ok=True)
                checkpoint.folder.rename(target / checkpoint.folder.name)

    def records(self, path: Path, keys: Sequence[str] | None = None) -> list[dict]:
        """The lines that hold of `metrics` or `evaluations`, by batch: some batches were trained more than once.

        Of a long run whole lines are gigabytes; with `keys` each has these alone, None for what it lacks.
        """
        rollbacks = self.rollbacks()
        kept = {
            line["batch"]: line if keys is None else {key: line.get(key) for key in keys}
            for line in read_lines(path)
            if abandoned_by(line["token"], line.get("rollbacks", 0), rollbacks) is None
        }
        return sorted(kept.values(), key=lambda line: line["batch"])


def abandoned_by(token: int, rollbacks_before: int, rollbacks: Sequence[Rollback]) -> int | None:
    """The number, from 1, of the rollback that abandoned what was written at `token` after `rollbacks_before`."""
    for number, rollback in enumerate(rollbacks[rollbacks_before:], rollbacks_before + 1):
        if token > rollback.to_token:
            return number
    return None


def kept_checkpoints(
    checkpoints: Iterable[CompleteCheckpoint], rollbacks: Sequence[Rollback]
) -> list[CompleteCheckpoint]:
    """Those that no rollback abandoned, oldest first."""
    kept = [found for found in checkpoints if abandoned_by(found.token, found.rollbacks, rollbacks) is None]
    return sorted(kept, key=lambda checkpoint: checkpoint.token)


def none_complete(where: object, count: int) -> FoundryError:
    """The error that takes the place of a fresh start."""
    return FoundryError(
        f"{where}: {count} checkpoint(s) and none of them complete; move the folder away to start afresh"
    )


def complete_checkpoints(folders: Iterable[Path]) -> list[CompleteCheckpoint]:
    """The complete ones of some checkpoint folders, oldest first."""
    found = [checkpoint for folder in folders if (checkpoint := read_checkpoint(folder)) is not None]
    return sorted(found, key=lambda checkpoint: checkpoint.token)


def read_checkpoint(folder: Path) -> CompleteCheckpoint | None:
    """The checkpoint in a folder, or None if it is not complete."""
    try:
        content = (folder / COMPLETE).read_bytes()
    except OSError as error:
        log.warning("%s: not complete, so not used (%s)", folder, error)
        return None
    return check_complete(folder, folder, content, lambda name: (folder / name).stat().st_size)


def check_complete(
    folder: Path, where: object, complete: bytes, size_of: Callable[[str], int]
) -> CompleteCheckpoint | None:
    """The checkpoint that a COMPLETE file tells of, or None if its parts are not what that says.

    Args:
        folder: in which it lies, or would lie.
        where: it is, for the log.
        complete: what its COMPLETE file holds.
        size_of: a part by its name, in bytes; an OSError or a KeyError says that it is not there.
    """
    try:
        content = json.loads(complete)
        if outside := [name for name in content["files"] if Path(name).name != name or name == ".."]:
            raise ValueError(f"lists a file outside of the checkpoint, {outside[0]!r}")
        sizes = {name: size_of(name) for name in content["files"]}
        if sizes != content["files"]:
            raise ValueError(f"its parts do not have the sizes that {COMPLETE} lists")
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
    """Write a checkpoint folder's COMPLETE file, whole or not at all."""
    folder = checkpoint.folder
    content = {key: value for key, value in asdict(checkpoint).items() if key != "folder"}
    write_whole(folder / COMPLETE, json.dumps(content) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file that is there whole, or as it was before."""
    writing = path.parent.parent / f".{path.parent.name}.{path.name}"
    with _named(path):
        writing.write_text(text, encoding="utf-8")
        writing.replace(path)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the file in an error of writing to it, as on a full disk; Python names a file that cannot be opened only."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint folder, if it is there, so that it never looks whole while it goes."""
    (folder / COMPLETE).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)


def open_lines(path: Path) -> BinaryIO:
    """Open a `.jsonl` file to append lines, after cutting off one that a killed process left without its end."""
    file = open(path, "ab+")  # noqa: SIM115 (the caller's)
    end = file.seek(0, 2)
    if end:
        file.seek(end - 1)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
    return file


def write_line(file: BinaryIO, line: dict) -> None:
    """Append a line to a file of `open_lines`; whoever reads the file sees it."""
    with _named(Path(file.name)):
        file.write(json.dumps(line).encode() + b"\n")
        file.flush()


def append_line(path: Path, line: dict, durable: bool = False) -> None:
    """Append a line to a `.jsonl` file.

    A `durable` line is on the disk when this returns, even if the machine fails.
    """
    with _named(path), open_lines(path) as file:
        write_line(file, line)
        if durable:
            os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict]:
    """The lines of a `.jsonl` file; none if it is not there. One without its end was never written."""
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines]
