"""Read a run's folder for the report: the small files unchanged, and `metrics.jsonl` in bins.

A long run has a million updates of 1 kB each. They are read once, line by line, and at most BINS points per stage are
kept: the mean, lowest and highest of neighbouring updates. A stage with no more than BINS updates keeps every one.
A bin ends where rows or row length change, so these changes stay exact.

A resumed run repeats the updates since its last checkpoint: the later line of a batch counts. If such a repetition
begins inside a complete bin, the bin is kept, because a resumed run repeats the same numbers.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rotary_foundry.recipe.schema import all_knobs, all_metrics
from rotary_foundry.runs.run_folder import RunFolder
from rotary_foundry.utils.errors import ConfigurationError, DataError
from rotary_foundry.utils.redaction import redacted

BINS = 500  # per stage
NUMBERS = (
    *all_metrics(), *all_knobs(), "lr", "weight_decay", "rows", "row_length", "real_tokens",
    "tokens_per_second", "mfu", "step_seconds", "data_seconds", "memory_gb", "grad_norm", "update_norm",
    "loss_spike_score", "slowest_lag",
)  # fmt: skip
SHARES = ("asked", "drawn")  # each a mapping from a source to its share; its numbers are named asked/<source>
# also mappings, by the tasks of an update; a line has the tasks of its own update
BY_TASK = ("task_loss", "task_right", "task_grad_norm", "task_weight", "task_cosine", "task_cosine_estimate")


@dataclass(frozen=True)
class Bin:
    """Neighbouring updates, from batch `first` to `last`, that are drawn as one point at the last one's end."""

    rollbacks: int  # in the run before these updates
    kept: bool  # False: a later rollback abandoned them
    stage: str
    first: int
    last: int
    token: int
    values: dict[str, tuple[float, float, float]]  # mean, lowest, highest; names without a number are left out


class Run:
    """The content of a run's folder.

    Raises:
        ConfigurationError: there is no run in the folder.
        DataError: a file is broken (the message names it and the line), or cannot be read.
    """

    def __init__(self, path: Path):
        self.folder = RunFolder(path)
        try:
            if not self.folder.plan.is_file():
                raise ConfigurationError(f"{path}: no run there (it has no {self.folder.plan.name})")
            self._read()
        except OSError as error:
            raise DataError(f"{path}: it cannot be read: {error}") from None

    def _read(self) -> None:
        folder = self.folder
        self.plan = _parse(folder.plan, json.loads)
        if "name" not in self.plan:
            raise DataError(f"{folder.plan}: it has no 'name'")
        self.name = self.plan["name"]
        self.config = redacted(_parse(folder.recipe, yaml.safe_load))
        self.environment = redacted(_parse(folder.environment, json.loads))
        self.rollbacks = list(_lines(folder.ledger, ("number", "token", "to_token")))
        evaluations = _lines(folder.evaluations, ("batch", "token", "stage", "loss"))
        self.evaluations = [line | {"kept": self._kept(line)} for line in evaluations]
        self.results = [line for path in folder.results for line in _headlines(path)]
        self.bins = self._bins(_lines(folder.metrics, ("batch", "token", "stage", "loss")))
        written = folder.metrics.stat().st_mtime if folder.metrics.exists() else None
        self.last_written = None if written is None else datetime.fromtimestamp(written).astimezone()

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


def _lines(path: Path, keys: tuple[str, ...]) -> Iterator[dict]:
    """Yield the content of each line. A line without its end is still being written, and is left out."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        for number, text in enumerate(file, 1):
            if not text.endswith(b"\n"):
                return
            try:
                line = json.loads(text)
            except ValueError as error:
                raise DataError(f"{path}, line {number}: expected JSON, found {error}; remove the line") from None
            for key in keys:
                if not isinstance(line, dict) or key not in line:
                    raise DataError(f"{path}, line {number}: expected the key '{key}', found none; remove the line")
            yield line


def _parse(path: Path, parse: Callable[[str], Any]) -> dict:
    """Return the mapping in a file; empty if the file does not exist."""
    if not path.exists():
        return {}
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path}: it cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a mapping, found a {type(content).__name__}")
    return content


def _headlines(path: Path) -> list[dict]:
    """Return the headline numbers of a suite, from a file as evaluation/results.py writes it."""
    try:
        return [
            {"model": path.parts[-3], "suite": path.parts[-2], "name": one["name"]}
            | {key: None if value is None else float(value) for key, value in one["measure"].items()}
            for one in _parse(path, json.loads)["headlines"]
        ]
    except (KeyError, TypeError, AttributeError, ValueError):
        raise DataError(f"{path}: it has no headlines as `rotary-foundry evaluate` writes them") from None
