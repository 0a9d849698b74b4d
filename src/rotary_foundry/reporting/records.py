"""A run's folder as columns: what the page is drawn from.

A long run has a million lines of about 700 bytes, too many for a dict each. So they are read one by one into columns
of numbers, and a reader goes on from where it stopped: a run in progress is read once, and then what is new.

Updates stand in a track for each number of rollbacks. Of a batch that was trained twice (a killed run that went on)
the last line holds. What a rollback abandoned is in its track still: beyond `kept_until`.
"""

import bisect
import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import yaml

from rotary_foundry.recipe.schema import all_knobs, all_metrics
from rotary_foundry.runs.run_folder import RunFolder
from rotary_foundry.utils.errors import ConfigurationError, DataError
from rotary_foundry.utils.redaction import redacted

NUMBERS = (
    *all_metrics(), *all_knobs(), "lr", "weight_decay", "rows", "row_length", "real_tokens",
    "tokens_per_second", "mfu", "step_seconds", "data_seconds", "forward_seconds", "backward_seconds",
    "optimizer_seconds", "communication_seconds", "memory_gb", "grad_norm", "update_norm", "loss_spike_score",
    "slowest_lag",
)  # fmt: skip
SHARES = ("asked", "drawn")  # each a mapping from a source to its share
NAN = float("nan")


@dataclass
class Track:
    """The updates that were made after so many rollbacks."""

    token: array = field(default_factory=lambda: array("q"))
    batch: array = field(default_factory=lambda: array("q"))
    stage: array = field(default_factory=lambda: array("l"))  # index into the run's stages
    columns: dict[str, array] = field(default_factory=dict)  # NaN where a line has no number

    def append(self, batch: int, token: int, stage: int, values: dict[str, float]) -> None:
        """Add an update. Those from this batch on that are there already were trained before a resume: they go."""
        while self.batch and self.batch[-1] >= batch:
            for column in (self.token, self.batch, self.stage, *self.columns.values()):
                column.pop()
        for name, column in self.columns.items():
            column.append(values.pop(name, NAN))
        for name, value in values.items():
            self.columns[name] = array("d", [NAN]) * len(self.batch)
            self.columns[name].append(value)
        self.batch.append(batch)
        self.token.append(token)
        self.stage.append(stage)


class Run:
    """What is known of a run, by its folder; `refresh` reads what came since.

    Raises:
        ConfigurationError: there is no run in the folder.
        DataError: one of its files is broken, which one and in which line; or cannot be read.
    """

    def __init__(self, path: Path):
        self.folder = RunFolder(path)
        self.tracks: dict[int, Track] = {}
        self.stages: list[str] = []
        self.read_until = 0  # bytes of metrics.jsonl
        self.lines = 0
        self.seen: list[tuple] = []  # of each file: when it was changed, and its size
        self.refresh()

    def refresh(self) -> bool:
        """Read what has been written since; whether that was anything."""
        try:
            if not self.folder.plan.is_file():
                raise ConfigurationError(f"{self.folder.path}: no run there (it has no {self.folder.plan.name})")
            there = [_changed(path) for path in self._files()]
            if there == self.seen:
                return False
            self._read()
        except OSError as error:
            raise DataError(f"{self.folder.path}: it cannot be read: {error}") from None
        self.seen = there  # from before they were read, and not if one was broken
        return True

    def _read(self) -> None:
        self.plan = _parse(self.folder.plan, json.loads)
        self.name = _need(self.plan, "name", self.folder.plan)
        self.config = redacted(_parse(self.folder.recipe, yaml.safe_load))
        self.environment = redacted(_parse(self.folder.environment, json.loads))
        self.rollbacks = [line for _, line in _lines(self.folder.ledger, ("number", "token", "to_token"))]
        evaluations = _lines(self.folder.evaluations, ("batch", "token", "stage", "loss"))
        self.evaluations = [line | {"kept": self._kept(line)} for _, line in evaluations]
        self.results = [line for path in self.folder.results for line in _headlines(path)]
        self._read_updates()
        metrics = self.folder.metrics
        self.last_written = datetime.fromtimestamp(metrics.stat().st_mtime).astimezone() if metrics.exists() else None

    def _files(self) -> list[Path]:
        folder = self.folder
        files = [folder.plan, folder.recipe, folder.environment, folder.ledger, folder.evaluations, folder.metrics]
        return [*files, *folder.results]

    @property
    def kept(self) -> list[tuple[Track, slice]]:
        """The tracks with what of them was kept."""
        return [(track, slice(0, self._end(number))) for number, track in sorted(self.tracks.items())]

    @property
    def abandoned(self) -> list[tuple[Track, slice]]:
        """The tracks with what of them rollbacks abandoned."""
        parts = [(track, slice(self._end(number), len(track.token))) for number, track in sorted(self.tracks.items())]
        return [(track, part) for track, part in parts if part.start < part.stop]

    def kept_until(self, rollbacks: int) -> float:
        """The token beyond which later rollbacks abandoned what was made after so many of them."""
        return min((line["to_token"] for line in self.rollbacks[rollbacks:]), default=float("inf"))

    def _end(self, number: int) -> int:
        return bisect.bisect_right(self.tracks[number].token, self.kept_until(number))

    def _kept(self, line: dict) -> bool:
        return line["token"] <= self.kept_until(line.get("rollbacks", 0))

    def _read_updates(self) -> None:
        path = self.folder.metrics
        if path.exists() and path.stat().st_size < self.read_until:  # the run was begun anew
            self.tracks, self.stages, self.read_until, self.lines = {}, [], 0, 0
        for end, line in _lines(path, ("batch", "token", "stage", "loss"), self.read_until, self.lines):
            values = {name: float(line[name]) for name in NUMBERS if isinstance(line.get(name), int | float)}
            for kind in SHARES:
                for source, share in (line.get(kind) or {}).items():
                    values[f"{kind}/{source}"] = share
            if line["stage"] not in self.stages:
                self.stages.append(line["stage"])
            track = self.tracks.setdefault(line.get("rollbacks", 0), Track())
            track.append(line["batch"], line["token"], self.stages.index(line["stage"]), values)
            self.read_until = end
            self.lines += 1


def _changed(path: Path) -> tuple:
    try:
        found = path.stat()
    except FileNotFoundError:
        return (path,)
    return path, found.st_ino, found.st_mtime_ns, found.st_size


def _lines(path: Path, keys: tuple[str, ...], start: int = 0, before: int = 0) -> Iterator[tuple[int, dict]]:
    """Where each line from byte `start` on ends, and what it holds; `before` of them stand before that byte.

    A line without its end is being written.
    """
    if not path.exists():
        return
    with open(path, "rb") as file:
        file.seek(start)
        for number, text in enumerate(file, before + 1):
            if not text.endswith(b"\n"):
                return
            try:
                line = json.loads(text)
            except ValueError as error:
                raise DataError(f"{path}, line {number}: no JSON ({error}); without that line the run reads") from None
            if missing := [key for key in keys if not isinstance(line, dict) or key not in line]:
                raise DataError(f"{path}, line {number}: it has no '{missing[0]}'; without that line the run reads")
            start += len(text)
            yield start, line


def _parse(path: Path, parse) -> dict:
    """What a file holds, which is one mapping; nothing if it is not there."""
    if not path.exists():
        return {}
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path}: it cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: it should hold a mapping, not a {type(content).__name__}")
    return content


def _headlines(path: Path) -> list[dict]:
    """The numbers of a suite that models are compared by, from its file as evaluation/results.py writes it."""
    try:
        return [
            {"model": path.parts[-3], "suite": path.parts[-2], "name": one["name"]}
            | {key: None if value is None else float(value) for key, value in one["measure"].items()}
            for one in _parse(path, json.loads)["headlines"]
        ]
    except (KeyError, TypeError, AttributeError, ValueError):
        raise DataError(f"{path}: it has no headlines as `rotary-foundry evaluate` writes them") from None


def _need(content: dict, key: str, path: Path) -> object:
    if key not in content:
        raise DataError(f"{path}: it has no '{key}'")
    return content[key]
