"""The usual range of a recipe's runs: several seeds in one small file, which the page draws behind a run.

`references/nano.json`, which `make reference` writes, comes from five runs of `nano.yaml`. A run is compared with it if
it follows the same recipe. Name, seed and folders may differ, and so may the text, because the nano corpus depends on
the installed packages. `rotary-foundry reference` makes the references of other recipes, which are given by name.

The loss of one update is noisy, and for a single update a third of all new runs lie outside the range of five seeds. So
for each update, the band is the lowest and highest of all seeds' updates up to WINDOW before and after it in the same
stage. A run that is clearly outside for long is not chance. Held-out numbers are few, and are shown unchanged.
"""

import hashlib
import json
from importlib.resources import files
from pathlib import Path

import numpy as np

from rotary_foundry.recipe.schema import all_metrics
from rotary_foundry.reporting.records import Run
from rotary_foundry.utils.errors import ConfigurationError, DataError
from rotary_foundry.utils.json_text import parse_json

WINDOW = 4  # updates to either side; bins of updates in a stage of more than records.BINS updates
KEYS = ("loss", *(name for name in all_metrics() if name != "loss"))
DIGITS = 4  # of a number in the file
FOLDER = "references"


def write_reference(paths: list[Path], out: Path) -> None:
    """Write the range of finished runs of one recipe.

    Args:
        paths: the runs' folders; the runs have different seeds.
        out: the file to write, JSON.

    Raises:
        ConfigurationError: there are fewer than two runs, or they have different recipes or equal seeds, or one is
            unfinished or was rolled back; or the file cannot be written.
        DataError: a file of a run is broken.
    """
    runs = [Run(path) for path in paths]
    if problems := [problem for run in runs for problem in run.problems]:
        raise DataError(problems[0])
    _check(runs)
    bins = [run.bins for run in runs]  # for the same updates, because all runs follow one plan
    stage = np.array([one.stage for one in bins[0]])
    content = {
        "recipe": recipe_digest(runs[0]),
        "name": runs[0].config["run_name"],
        "seeds": [run.config["seed"] for run in runs],
        "commit": runs[0].environment.get("commit"),
        "packages": runs[0].environment.get("packages"),
        "token": [one.token for one in bins[0]],
        **{
            key: _band(np.array([[one.values[key] for one in of_run] for of_run in bins]), stage)
            for key in KEYS
            if all(key in one.values for of_run in bins for one in of_run)
        },
        "held_out": [_held_out(lines) for lines in zip(*(run.evaluations for run in runs), strict=True)],
    }
    text = json.dumps(content, separators=(",", ":")).replace('],"', '],\n"')
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{out} cannot be written: {error}") from error


def find_reference(runs: list[Run], given: Path | None = None) -> dict | None:
    """Return the reference of the runs' recipe, as `write_reference` wrote it.

    Args:
        runs: the runs to show together.
        given: a file; None: the built-in reference of the first run's recipe, if there is one.

    Raises:
        ConfigurationError: the file is for a recipe that none of the runs follows.
        DataError: the file cannot be read.
    """
    digests = [recipe_digest(run) for run in runs]
    if given is not None:
        content = _read(given)
        if content["recipe"] not in digests:
            raise ConfigurationError(f"{given}: is for another recipe ({content['name']}) than {runs[0].folder.path}")
        return content
    for file in sorted((files(__package__) / FOLDER).iterdir(), key=lambda file: file.name):
        content = parse_json(file.read_text(encoding="utf-8"))
        if content["recipe"] in digests:
            return content
    return None


def recipe_digest(run: Run) -> str:
    """Return a digest, in hexadecimal digits, of a run's model, objective, optimizer and plan, without its seed."""
    config = run.config
    model = {key: value for key, value in config.get("model", {}).items() if key != "attn_implementation"}
    what = [model, *(config.get(key) for key in ("objective", "optimizer", "init_from")), run.plan.get("segments")]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def _check(runs: list[Run]) -> None:
    if len(runs) < 2:
        raise ConfigurationError("expected several runs of one recipe, each with its own seed")
    seeds = [run.config.get("seed") for run in runs]
    for run, seed in zip(runs, seeds, strict=True):
        where = run.folder.path
        if recipe_digest(run) != recipe_digest(runs[0]):
            raise ConfigurationError(f"{where}: follows another recipe than {runs[0].folder.path}")
        if seeds.count(seed) > 1:
            raise ConfigurationError(f"{where}: seed {seed} occurs twice; each run needs its own")
        if run.rollbacks:
            raise ConfigurationError(f"{where}: was rolled back; a reference needs runs without rollbacks")
        if not run.bins or run.bins[-1].token < run.plan["total_tokens"]:
            raise ConfigurationError(f"{where}: is not finished; resume it with its own command")


def _band(values: np.ndarray, stage: np.ndarray) -> dict[str, list[float]]:
    """Return mean, lowest and highest around each bin; `values` has them as [runs, bins, 3], `stage` is [bins]."""
    found = []
    for index in range(values.shape[1]):
        around = slice(max(0, index - WINDOW), index + WINDOW + 1)
        near = values[:, around][:, stage[around] == stage[index]]
        found.append((near[..., 0].mean(), near[..., 1].min(), near[..., 2].max()))
    mean, low, high = (_rounded(numbers) for numbers in np.array(found).T.tolist())
    return {"mean": mean, "low": low, "high": high}


def _held_out(lines: tuple[dict, ...]) -> dict:
    """Combine one evaluation of all runs."""
    place = {key: lines[0][key] for key in ("stage", "token")}
    return place | {key: _rounded([line[key] for line in lines]) for key in KEYS if key in lines[0]}


def _rounded(numbers: list[float]) -> list[float]:
    return [float(f"{number:.{DIGITS}g}") for number in numbers]


def _read(path: Path) -> dict:
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        missing = {"recipe", "name", "seeds", "token", "held_out", "loss"} - content.keys()
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: cannot be read as a reference: {error}") from None
    if missing:
        raise DataError(f"{path}: no reference, it has no '{min(missing)}'; `rotary-foundry reference` writes one")
    return content
