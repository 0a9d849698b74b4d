"""The suite `glue`: the scores of a model after fine-tuning, by the search of `rotary-foundry finetune`.

Offline, the tasks are made from the Python installation; with a network, they are GLUE's. Any YAML for classifiers in
`yamls/finetune/` can be used. The search has a folder beside the result, so the same command resumes it. Intervals are
Student's t over the seeds: they show the effect of another seed, not of other texts. The interval of the mean over
tasks is computed from each seed's mean; if a seed diverged in only some tasks, there is no interval.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.special import stdtrit

from rotary_foundry.evaluation.results import Headline, Measure, Result, Row, results_folder
from rotary_foundry.evaluation.suites import SuiteConfig

CONFIDENCE = 0.95


@dataclass(kw_only=True)
class Config(SuiteConfig):
    """The keys of `yamls/eval/glue.yaml`."""

    finetune: str  # a YAML for classifiers, with its grid and its seeds
    task: Any = None  # one or several of its tasks; null: as in the YAML, by default all


def check(model: Path, config: Config) -> None:
    """Check the YAML of the fine-tuning.

    Raises:
        ConfigurationError: names the file and the key.
        NeedsNetwork: a task's data has to be downloaded, and the hub cannot be reached.
    """
    from rotary_foundry.finetuning.search import load_search

    load_search(config.finetune, _overrides(model, config))


def run(model: Path, config: Config) -> Result:
    """Fine-tune a model directory, a run or a checkpoint on each task.

    Raises:
        FoundryError: as for `finetune`.
    """
    from rotary_foundry.finetuning.search import finetune
    from rotary_foundry.interop.export import export_checkpoint

    if (directory := _directory(model, config)) != model:
        export_checkpoint(model, directory)
    found = finetune(config.finetune, _overrides(model, config))
    rows = [_row(result) for result in found]
    headlines = [
        Headline(f"{result['task']} {result['metric']}", row.measures[result["metric"]], lower_is_better=False)
        for result, row in zip(found, rows, strict=True)
    ]
    if len(headlines) > 1:
        headlines.append(Headline("mean of tasks", _mean(found), lower_is_better=False))
    notes = [
        f"{result['task']}: seed {seed} diverged, and is left out"
        for result in found
        for seed, score in result["scores"].items()
        if score is None
    ]
    notes += [
        f"{result['task']}: {count:,} of {result['examples'][split]:,} texts of {split} were cut to "
        f"{result['max_seq_len']:,} tokens"
        for result in found
        for split, count in result["truncated"].items()
        if count
    ]
    data = {"finetune": config.finetune, "examples": {result["task"]: result["examples"] for result in found}}
    return Result("glue", "fine-tuned", {}, {}, data, rows, headlines, notes, {"results": found})


def _folder(model: Path, config: Config) -> Path:
    return results_folder(model, config.out) / config.suite


def _directory(model: Path, config: Config) -> Path:
    """Return the directory to fine-tune: the model, or an export made from a run or a checkpoint."""
    return model if (model / "config.json").is_file() else _folder(model, config) / "model"


def _overrides(model: Path, config: Config) -> list[str]:
    """Return the overrides for the YAML of the fine-tuning."""
    task = [] if config.task is None else [f"task={json.dumps(config.task)}"]
    return [f"model={_directory(model, config)}", f"out={_folder(model, config) / 'finetune'}", *task]


def _row(result: dict) -> Row:
    """Make a task's row: its examples, its seeds, and each metric's mean over the seeds."""
    seeds = len(_reached(result))
    labels = {"task": result["task"], **result["examples"], "seeds": seeds}
    metrics = result["metrics"].items()
    return Row(labels, {name: _measure(value["mean"], value["deviation"], seeds) for name, value in metrics})


def _reached(result: dict) -> dict[str, float]:
    """Return the scores, by seed, of the seeds that did not diverge."""
    return {seed: score for seed, score in result["scores"].items() if score is not None}


def _mean(results: Sequence[dict]) -> Measure:
    """Compute the mean of the tasks' first metrics, with its interval."""
    scores = [_reached(result) for result in results]
    mean = statistics.mean(statistics.mean(of_task.values()) for of_task in scores)
    if any(of_task.keys() != scores[0].keys() for of_task in scores):
        return Measure(mean)
    by_seed = [statistics.mean(of_task[seed] for of_task in scores) for seed in scores[0]]
    return _measure(mean, statistics.stdev(by_seed) if by_seed[1:] else None, len(by_seed))


def _measure(mean: float, deviation: float | None, seeds: int) -> Measure:
    """Return a mean with Student's interval; no interval for a single seed or if all seeds have the same score."""
    if not deviation:
        return Measure(mean)
    reach = float(stdtrit(seeds - 1, (1 + CONFIDENCE) / 2)) * deviation / seeds**0.5
    return Measure(mean, mean - reach, mean + reach)
