"""Read a run's folder for the report: the small files unchanged, and `metrics.jsonl` in bins.

A long run has a million updates of 1 kB each. They are read once, line by line, and at most BINS points per stage are
kept: the mean, lowest and highest of neighbouring updates. A stage with no more than BINS updates keeps every one.
A bin ends where rows or row length change, so these changes stay exact.

A resumed run repeats the updates since its last checkpoint: the later line of a batch counts. If such a repetition
begins inside a complete bin, the bin is kept, because a resumed run repeats the same numbers.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rotary_foundry.runs.record_files import each_line
from rotary_foundry.runs.record_values import BY_TASK, NUMBERS, SHARES
from rotary_foundry.runs.run_folder import RunFolder
from rotary_foundry.utils.errors import DataError
from rotary_foundry.utils.json_text import read_object
from rotary_foundry.utils.redaction import redacted

BINS = 500  # per stage
INTERVAL = ("value", "low", "high")  # of a result of `rotary-foundry evaluate`


@dataclass(frozen=True)
class Bin:
    """Neighbouring updates, from batch `first` to `last`, that are drawn as one point at the last one's end."""

    rollbacks: int  # in the run before these updates
    kept: bool  # False: a later rollback abandoned them
    stage: str
    first: int
    last: int
    token: int
    # mean, lowest, highest; names without a number are left out; those of mappings are named asked/<source>
    values: dict[str, tuple[float, float, float]]


class Run:
    """The content of a run's folder. What is damaged is left out; `problems` name each file, and the first line of it.

    Raises:
        ConfigurationError: there is no run in the folder.
    """

    def __init__(self, path: Path):
        self.folder = folder = RunFolder(path)
        self.problems: list[str] = []
        folder.check_is_run()
        self.plan = self._read(folder.read_plan, {})
        self.name = self.plan.get("name", path.resolve().name)
        self.config = redacted(self._read(lambda: _mapping(folder.recipe), {}))
        self.environment = redacted(self._read(lambda: read_object(folder.environment), {}))
        self.rollbacks = self._lines(folder.ledger, "number")
        evaluations = self._lines(folder.evaluations, "stage", "loss")
        self.evaluations = [line | {"kept": self._kept(line)} for line in evaluations]
        found = [self._read(lambda path=path: _headlines(path), []) for path in folder.results]
        self.results = [line for lines in found for line in lines]
        updates = each_line(folder.metrics, ("stage", "loss"), self.problems)
        self.bins = self._read(lambda: self._bins(updates), [])
        written = folder.metrics.stat().st_mtime if folder.metrics.exists() else None
        self.problems = redacted(self.problems)
        self.last_written = None if written is None else datetime.fromtimestamp(written).astimezone()

    def _read(self, read: Callable[[], Any], otherwise: Any) -> Any:
        """Return what `read` returns; if it raises an error of a file, note that and return `otherwise`."""
        try:
            return read()
        except (DataError, OSError) as error:
            self.problems.append(str(error))
            return otherwise

    def _lines(self, path: Path, *needed: str) -> list[dict]:
        return self._read(lambda: list(each_line(path, needed, self.problems)), [])

    @property
    def stages(self) -> dict[str, list[dict]]:
        """Return the plan's segments by stage."""
        segments = self.plan.get("segments", [])
        return {name: list(group) for name, group in groupby(segments, lambda segment: segment["stage"])}

    def _kept(self, line: dict) -> bool:
        later = self.rollbacks[line.get("rollbacks", 0) :]
        return all(line["token"] <= rollback["to_token"] for rollback in later)

    def _bins(self, lines: Iterable[dict]) -> list[Bin]:
        counts = {stage: sum(one["updates"] for one in segments) for stage, segments in self.stages.items()}
        sizes = {stage: max(1, -(-count // BINS)) for stage, count in counts.items()}

        def place(line: dict) -> tuple:
            index = (line["batch"] - 1) // sizes.get(line["stage"], 1)
            rows = line.get("rows"), line.get("row_length")
            return line.get("rollbacks", 0), self._kept(line), line["stage"], *rows, index

        bins: list[Bin] = []
        for (rollbacks, kept, stage, *_), group in groupby(lines, place):
            made = _bin(rollbacks, kept, stage, group)
            while bins and bins[-1].rollbacks == rollbacks and bins[-1].first >= made.first:
                bins.pop()
            if not (bins and bins[-1].rollbacks == rollbacks and bins[-1].last >= made.first):
                bins.append(made)
        return bins


def _bin(rollbacks: int, kept: bool, stage: str, group: Iterable[dict]) -> Bin:
    lines: list[dict] = []
    for line in group:
        while lines and lines[-1]["batch"] >= line["batch"]:
            lines.pop()
        lines.append(line)
    named = [(kind, source) for kind in SHARES for source in lines[-1].get(kind) or {}]
    named += dict.fromkeys((kind, task) for line in lines for kind in BY_TASK for task in line.get(kind) or ())
    table = [
        [line.get(name) for name in NUMBERS] + [(line.get(kind) or {}).get(source) for kind, source in named]
        for line in lines
    ]
    values = np.array(table, dtype=float)  # None becomes NaN
    values[~np.isfinite(values)] = np.nan
    count = np.isfinite(values).sum(axis=0)
    mean = np.nansum(values, axis=0) / np.maximum(count, 1)
    found = zip(
        (*NUMBERS, *map("/".join, named)),
        zip(mean.tolist(), np.fmin.reduce(values).tolist(), np.fmax.reduce(values).tolist(), strict=True),
        count,
        strict=True,
    )
    numbers = {name: number for name, number, there in found if there}
    return Bin(rollbacks, kept, stage, lines[0]["batch"], lines[-1]["batch"], lines[-1]["token"], numbers)


def _mapping(path: Path) -> dict:
    """Return the mapping in a YAML file.

    Raises:
        DataError: the file has no YAML, or something else.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, RecursionError, yaml.YAMLError) as error:
        raise DataError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None  # the rest quotes it
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a mapping, found a {type(content).__name__}")
    return content


def _headlines(path: Path) -> list[dict]:
    """Return the headline numbers of a suite, from a file as evaluation/results.py writes it."""
    try:
        return [
            {"model": path.parts[-3], "suite": path.parts[-2], "name": one["name"]}
            | {key: None if one["measure"][key] is None else float(one["measure"][key]) for key in INTERVAL}
            for one in read_object(path)["headlines"]
        ]
    except (KeyError, TypeError, AttributeError, ValueError):
        raise DataError(f"{path}: it has no headlines as `rotary-foundry evaluate` writes them") from None
