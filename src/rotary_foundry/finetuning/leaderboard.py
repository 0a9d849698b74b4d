"""The results of fine-tuning: the best point of each task's grid, and a table of models.

`results.json` in a search's folder has one entry for each task. A leaderboard reads only these files, so it can be made
from any number of searches, for any models, at any time.
"""

import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from rotary_foundry.utils.errors import ConfigurationError, DataError
from rotary_foundry.utils.json_text import parse_json, read_object
from rotary_foundry.utils.wording import number, one_line

RESULTS = "results.json"
JOB, RESULT, MODEL = "job.json", "result.json", "model"  # of a job: its settings, its result, its best model
POINT = ("lr", "weight_decay", "max_duration", "global_train_batch_size")


def point_name(point: dict) -> str:
    """Return the folder name of a point of the grid."""
    lr, decay = number(point["lr"]), number(point["weight_decay"])
    return f"lr={lr},wd={decay},{point['max_duration']},bs={point['global_train_batch_size']}"


def jobs(folder: Path) -> Iterator[dict]:
    """Yield the finished jobs in a task's folder: their settings, results and `folder`."""
    for path in sorted(folder.glob(f"*/seed-*/{RESULT}")):
        yield read_settings(path.parent) | read_result(path.parent) | {"folder": path.parent}


def read_settings(job: Path) -> dict:
    """Read the settings in a job's folder; if they are damaged, a DataError names the file."""
    return _object(job, JOB, {"seed": lambda seed: type(seed) is int})


def read_result(job: Path) -> dict:
    """Read the result in a job's folder; if it is damaged, a DataError names the file."""
    result = _object(job, RESULT, {"score": lambda score: score is None or _is_number(score)})
    if result["score"] is None:  # the loss became NaN or infinite
        return result
    return _object(
        job, RESULT, {"metrics": lambda found: isinstance(found, dict) and all(map(_is_number, found.values()))}
    )


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _object(job: Path, name: str, needed: dict[str, Callable[[object], bool]]) -> dict:
    try:
        content = read_object(job / name)
        for key, holds in needed.items():
            if key not in content or not holds(content[key]):
                raise DataError(f"{job / name}: '{key}' is damaged: {content.get(key)!r:.60}")
    except DataError as error:
        raise DataError(f"{error}; remove {job}, and the same `finetune` runs the job again") from None
    return content


def best_point(folder: Path, points: Sequence[dict], seeds: Sequence[int]) -> dict | None:
    """Return the point with the fewest diverged seeds, and among those the highest mean; None if all diverged."""
    scores: dict[str, list[float]] = defaultdict(list)
    for job in jobs(folder):
        if job["seed"] in seeds and job["score"] is not None:
            scores[job["folder"].parent.name].append(job["score"])

    def reached(point: dict) -> tuple[int, float]:
        of_point = scores[point_name(point)]
        return len(of_point), statistics.mean(of_point)

    return max((point for point in points if scores[point_name(point)]), key=reached, default=None)


def summarise(folder: Path, point: dict, tried: int, seeds: Sequence[int]) -> dict:
    """Make a task's entry of `results.json`: mean and deviation over the seeds of its best point.

    A diverged seed has the score None and is not part of mean and deviation.
    """
    found = [job for job in jobs(folder) if job["folder"].parent.name == point_name(point) and job["seed"] in seeds]
    reached = [job for job in found if job["score"] is not None]
    best = max(reached, key=lambda job: job["score"])
    metrics = {name: [job["metrics"][name] for job in reached] for name in best["metrics"]}
    return {
        **{key: best[key] for key in ("task", "base_model", "init_from_task")},
        "metric": best["metrics"] and next(iter(best["metrics"])),
        "metrics": {
            name: {"mean": statistics.mean(values), "deviation": statistics.stdev(values) if values[1:] else None}
            for name, values in metrics.items()
        },
        "scores": {str(job["seed"]): job["score"] for job in found},
        "point": point,
        "points_tried": tried,
        **{key: best[key] for key in ("labels", "examples", "truncated", "max_seq_len", "device", "versions")},
        "model": str(best["folder"] / MODEL),
    }


def write_json(path: Path, value: dict | list) -> None:
    """Write a JSON file atomically."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    new.rename(path)


def read_results(folder: Path) -> list[dict]:
    """Read the entries of a search's folder; empty if it has none yet.

    Raises:
        DataError: the file is damaged.
    """
    file = folder / RESULTS
    if not file.is_file():
        return []
    try:
        results = parse_json(file.read_text(encoding="utf-8"))
        if not results:
            raise ValueError("it is empty")
        _cells = [(one["task"], one["base_model"], _cell(one["metrics"][one["metric"]])) for one in results]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"{file}: damaged ({type(error).__name__}: {one_line(error)}); remove it, and the same `finetune` makes it "
            "again from the finished jobs"
        ) from None
    return results


def print_results(results: Iterable[dict], console: Console | None = None) -> None:
    """Print a row per task: its scores, the best point of the grid, and the folder of the model."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("task", "reached", "of seeds", "at", "of points"):
        table.add_column(name, justify="right" if name.startswith("of ") else "left", overflow="fold")
    results = list(results)
    for result in results:
        reached = "\n".join(f"{name} {_cell(value)}" for name, value in result["metrics"].items())
        table.add_row(result["task"], reached, _seeds(result), point_name(result["point"]), str(result["points_tried"]))
    console = console or Console()
    console.print(table)
    for result in results:
        console.print(f"{result['task']}: {result['model']}", soft_wrap=True, highlight=False)


def print_leaderboard(folders: Sequence[Path], console: Console | None = None) -> None:
    """Print a row per model, best first, and a column per task, from the results in these folders and below them.

    A task has a column for each metric that selected its models. Only models with a value in every column have a mean.

    Raises:
        ConfigurationError: the folders have no results.
        DataError: a file of results is broken.
    """
    found = sorted({path.parent for folder in folders for path in folder.rglob(RESULTS)})
    if not found:
        raise ConfigurationError(f"{', '.join(map(str, folders))}: no {RESULTS} found; `finetune` writes it")
    rows = {folder: {result["task"]: result for result in read_results(folder)} for folder in found}
    tasks = list(dict.fromkeys(task for row in rows.values() for task in row))
    columns = dict.fromkeys((task, row[task]["metric"]) for task in tasks for row in rows.values() if task in row)
    reached = {
        folder: [row[task]["metrics"].get(metric) if task in row else None for task, metric in columns]
        for folder, row in rows.items()
    }
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("model", overflow="fold")
    table.add_column("mean", justify="right")
    for task, metric in columns:
        table.add_column(f"{task}\n{metric}", justify="right")
    means = {folder: statistics.mean(value["mean"] for value in row) for folder, row in reached.items() if all(row)}
    for folder in sorted(rows, key=lambda folder: -means.get(folder, -1.0)):
        cells = ["" if value is None else _cell(value) for value in reached[folder]]
        mean = f"{means[folder]:.4f}" if folder in means else ""
        table.add_row(next(iter(rows[folder].values()))["base_model"], mean, *cells)
    (console or Console()).print(table)


def _cell(value: dict) -> str:
    deviation = value["deviation"]
    return f"{value['mean']:.4f}" + ("" if deviation is None else f" ± {deviation:.4f}")


def _seeds(result: dict) -> str:
    diverged = sum(score is None for score in result["scores"].values())
    return f"{len(result['scores'])}" + (f", {diverged} diverged" if diverged else "")
