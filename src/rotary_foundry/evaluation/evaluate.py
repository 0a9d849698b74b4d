"""The command `evaluate`: run suites on models, write the results to a folder, and print tables.

What is wrong with the arguments (a suite, a key, a folder that the user named) is refused before anything is measured.
If a suite cannot be run on a model for another reason (the run's data have moved, no document is long enough), this is
printed, the others are run, and the command ends with an error that names what was not measured.
"""

import platform
import re
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from rotary_foundry.evaluation.compare import write_comparison
from rotary_foundry.evaluation.results import (
    FOLDER,
    PICTURE,
    Result,
    name_of,
    positions_variant,
    results_folder,
    run_of,
)
from rotary_foundry.evaluation.suite_pictures import draw
from rotary_foundry.evaluation.suites import DECODERS, ENCODERS, Suite, SuiteConfig, find_suites
from rotary_foundry.models.config_json import CONFIG, find_family_of, read_config
from rotary_foundry.runs.run_folder import RunFolder
from rotary_foundry.runs.run_lock import LockFile, RunLock
from rotary_foundry.runs.trained_state import read_source, recipe_of
from rotary_foundry.utils.errors import ConfigurationError, DataError, FoundryError, check_utf_8

Missing = dict[tuple[Path, str], DataError]  # by model and suite: why its data cannot be read

PACKAGES = (
    *("rotary-foundry", "torch", "transformers", "tokenizers", "numpy", "scipy"),
    *("mteb", "sentence-transformers", "pylate"),
)


def evaluate(models: Sequence[str], suites: Sequence[str], overrides: Iterable[str] = ()) -> list[Result]:
    """Measure each model by each suite, print a table of each, and write results and pictures.

    Args:
        models: paths of runs, checkpoints, exports or Hugging Face directories; several are compared.
        suites: as `find_suites` takes them.
        overrides: `key=value`, each applied to the suites that have the key.

    Raises:
        ConfigurationError: no such suite, key or model, or another `evaluate` uses the same folder; raised before
            anything is measured.
        NeedsNetwork: a suite has to download something; raised before anything is measured.
        FoundryError: a suite cannot be measured on a model; raised after the others are measured. If its data were
            given, and are missing, it is raised before anything is measured.
    """
    check_utf_8(*models)
    paths = [Path(model) for model in models]
    for path in paths:
        if not path.exists():
            raise ConfigurationError(
                f"{path}: no such file or folder; expected a run, a checkpoint or a model directory"
            )
        if [name_of(one) for one in paths].count(name_of(path)) > 1:
            raise ConfigurationError(f"{path}: another model has the same name, {name_of(path)}; rename one of them")
    decoders = [is_decoder(path) for path in paths]
    found = find_suites(suites, overrides, all(decoders), lambda: data_of(paths[0]))
    for path, decoder in zip(paths, decoders, strict=True):
        for suite in found:
            if decoder is not None and decoder != (suite.name in DECODERS):
                kind, serve = ("a decoder", DECODERS) if decoder else ("an encoder", ENCODERS)
                raise ConfigurationError(
                    f"{path}: {kind}, which the suite {suite.name} does not serve; use {', '.join(serve)}"
                )
    missing = {(path, suite.name): error for path in paths for suite in found if (error := _check(suite, path))}
    if len(missing) == len(paths) * len(found):
        raise next(iter(missing.values()))
    with ExitStack() as held:
        locks = [held.enter_context(RunLock(LockFile(folder, "out"))) for folder in _written(paths, found, missing)]
        return _evaluate(paths, found, missing, locks)


def data_of(model: Path) -> str | None:
    """Return the folder of data that a model's run was trained on, valid from here; None if it belongs to no run.

    Raises:
        ConfigurationError: the run's recipe is damaged.
    """
    run = run_of(model)
    try:
        return None if run is None else recipe_of(RunFolder(run)).data.local
    except ConfigurationError:
        if (model / CONFIG).is_file():  # it needs no run, and the recipe may be of no run
            return None
        raise


def _check(suite: Suite, model: Path) -> DataError | None:
    """Check a suite, and return the error if it needs data that are missing and that the user did not name."""
    try:
        if suite.check is not None:
            suite.check(model, suite.config)
    except DataError as error:
        if suite.data_given:
            raise
        return error
    return None


def is_decoder(path: Path) -> bool | None:
    """Return whether the model at a path predicts the next token; None if its files do not say so.

    Raises:
        FoundryError: the path has no model.
    """
    if (path / "modules.json").is_file():  # sentence-transformers makes vectors, with any network
        return False
    if not (path / CONFIG).is_file():
        return read_source(path).family.causal
    if (family := find_family_of(path)) is not None:
        return family.causal
    architectures = read_config(path).get("architectures") or ()
    endings = [re.search(r"(For\w+|LMHeadModel|Model)$", str(name)) for name in architectures]
    kinds = {found[1] in ("ForCausalLM", "LMHeadModel") for found in endings if found}
    return kinds.pop() if len(kinds) == 1 else None


def _written(models: list[Path], suites: list[Suite], missing: Missing) -> list[Path]:
    """Return the folders to write to, in a fixed order; if two commands share some, only one is refused."""
    folders = [
        results_folder(model, suite.config.out, _variant(suite.config), models[0]) / suite.name
        for model in models
        for suite in suites
        if (model, suite.name) not in missing
    ]
    return sorted({*folders, *([_compared(suites)] if len(models) > 1 else [])})


def _variant(config: SuiteConfig) -> str | None:
    return positions_variant(*(getattr(config, key, None) for key in ("rope_theta", "rope_scaling", "rope_factor")))


def _compared(suites: list[Suite]) -> Path:
    return Path(suites[0].config.out or FOLDER) / "compared"


def _evaluate(models: list[Path], suites: list[Suite], missing: Missing, locks: list[RunLock]) -> list[Result]:
    console = Console(highlight=False)
    results: list[Result] = []
    failed: dict[str, FoundryError] = {}
    for path in models:
        for suite in suites:
            try:
                if error := missing.get((path, suite.name)):
                    raise error
                result = _measured(suite, path)
            except FoundryError as error:
                failed[f"{suite.name} on {path}"] = error
                console.print(f"{suite.name} on {path}: not measured: {error}\n", markup=False, soft_wrap=True)
                continue
            for lock in locks:
                lock.check()
            variant = result.model.get("variant")
            folder = results_folder(path, suite.config.out, variant, models[0]) / suite.name
            result.write(folder)
            draw([result], folder / PICTURE)
            result.show(console)
            console.print(f"  in {result.seconds:.0f} s; written to {folder}\n", markup=False, soft_wrap=True)
            results.append(result)
    if len(models) > 1 and results:
        write_comparison(results, _compared(suites), console)
    if failed:
        _raise(failed, len(results))
    return results


def _raise(failed: dict[str, FoundryError], measured: int) -> NoReturn:
    """Raise one error for what was not measured; a single suite's own, if nothing was."""
    (what, first), *others = failed.items()
    if not measured and not others:
        raise first
    also = f"; nor {', '.join(what for what, _ in others)}" if others else ""
    written = "the other results are written" if measured else "nothing was measured"
    raise type(first)(f"{what}: not measured: {first}{also}; {written}")


def _measured(suite: Suite, model: Path) -> Result:
    start = time.perf_counter()
    result = suite.run(model, suite.config)
    result.model = {"name": name_of(model, result.model.get("variant")), "path": str(model)} | result.model
    result.config = asdict(suite.config)
    result.environment = _environment()
    result.seconds = time.perf_counter() - start
    return result


def _environment() -> dict:
    import torch  # and Composer below: this takes seconds, so refusals come before it

    from rotary_foundry.runs.environment import commit

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {"commit": commit(), "python": platform.python_version(), "device": device, "packages": versions}
