"""Shared by the scripts that train with several seeds: results that survive a stop, and intervals over seeds."""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from scipy.special import stdtrit


def record(file: Path, result: dict) -> None:
    """Append a result to a JSONL file."""
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(result) + "\n")


def interval(values: Sequence[float], form: str) -> str:
    """Format the mean over seeds and half of its 95 % interval, by Student's t; for a single seed only the mean."""
    mean = f"{statistics.mean(values):{form}}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {stdtrit(len(values) - 1, 0.975) * statistics.stdev(values) / math.sqrt(len(values)):.3f}"


def difference(values: Sequence[float], others: Sequence[float]) -> str:
    """Format the difference of the first values from the others, seed by seed, as `interval` does."""
    return interval([one - other for one, other in zip(values, others, strict=True)], "+.3f")


def print_table(rows: Iterable[Sequence[str]]) -> None:
    """Print a table in Markdown; the first row is its head."""
    head, *others = rows
    for row in (head, ["---"] * len(head), *others):
        print(f"| {' | '.join(row)} |")
