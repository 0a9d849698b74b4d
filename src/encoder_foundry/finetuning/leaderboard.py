"""What fine-tunings reached: the best point of each task's grid, and a table over models."""

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from encoder_foundry.errors import ConfigurationError
from encoder_foundry.finetuning.search import POINT, point_name

RESULTS = "results.json"


def jobs(folder: Path) -> Iterator[dict]:
    """The finished jobs of a task's folder: what was asked, what came out, and the job's `folder`."""
    for path in sorted(folder.glob("*/seed-*/result.json")):
        job = json.loads((path.parent / "job.json").read_text(encoding="utf-8"))
        yield job | json.loads(path.read_text(encoding="utf-8")) | {"folder": path.parent}


def best_point(folder: Path, seeds: Sequence[int]) -> dict | None:
    """The point of the grid with the highest mean over these seeds; None if training diverged at every point.

    Only points that have all of the seeds count; of equal ones the first by name.
    """
    scores: dict[str, list[float]] = defaultdict(list)
    points: dict[str, dict] = {}
    for job in jobs(folder):
        if job["seed"] in seeds and job["score"] is not None:
            scores[job["folder"].parent.name].append(job["score"])
            points[job["folder"].parent.name] = {key: job[key] for key in POINT}
    whole = [name for name, values in scores.items() if len(values) == len(seeds)]
    return points[max(whole, key=lambda name: statistics.mean(scores[name]))] if whole else None
