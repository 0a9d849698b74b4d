"""What the scripts share that train with several seeds: results that outlast a stop, and intervals over seeds."""

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
    """Write the mean over seeds and half of its 95 % interval, by Student's t; the mean alone of a single seed."""
    mean = f"{statistics.mean(values):{form}}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {stdtrit(len(values) - 1, 0.975) * statistics.stdev(values) / math.sqrt(len(values)):.3f}"


def difference(values: Sequence[float], others: Sequence[float]) -> str:
    """Write how much larger the first values are, seed by seed, as `interval`."""
    return interval([one - other for one, other in zip(values, others, strict=True)], "+.3f")


def print_table(rows: Iterable[Sequence[str]]) -> None:
    """Print a table in Markdown; the first row is its head."""
    head, *others = rows
    for row in (head, ["---"] * len(head), *others):
        print(f"| {' | '.join(row)} |")
