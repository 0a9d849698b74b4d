"""Load a recipe. Model keys that it omits are taken from `init_from`.

These are the keys of the model's shape, and the knobs that belong to trained weights. So nobody has to type a shape,
and a model trained with a theta of 160,000 does not continue with 10,000 because of an old file. Keys that a recipe
sets are changes: a larger shape grows the model, another theta switches it, and the plan shows both.

A run that has begun keeps the values in its recipe.yaml, because the source may train further or be deleted. This works
only if recipe.yaml is on this disk, because the recipe is read before the store.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rotary_foundry.models.family import Family, find_family
from rotary_foundry.recipe.compilation import compile_stages, with_set_rollback
from rotary_foundry.recipe.loading import instance, load_keys, merged
from rotary_foundry.recipe.mixtures import with_mixtures
from rotary_foundry.recipe.plan import Plan
from rotary_foundry.recipe.schema import Recipe, schema_of
from rotary_foundry.recipe.updates import in_tokens, rollback_in_tokens
from rotary_foundry.recipe.validation import problems
from rotary_foundry.runs.run_folder import RunFolder, complete_checkpoints
from rotary_foundry.runs.trained_state import Source, read_source, recipe_of
from rotary_foundry.utils.errors import ConfigurationError, FoundryError

NO_SOURCE = "set it, or set 'init_from' to a run, a checkpoint or a Hugging Face directory that has it"


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Load and check a recipe.

    Args:
        path: the YAML file.
        overrides: `key=value` arguments, dots for nesting (`optimizer.eps=1e-8`), applied last.

    Raises:
        ConfigurationError: a key is unknown, missing or invalid; names the file, the key and what to do.
    """
    return load_recipe_and_plan(path, overrides)[0]


def load_recipe_and_plan(path: str | Path, overrides: Iterable[str] = ()) -> tuple[Recipe, Plan]:
    """Load and check a recipe, and compile its plan before any rollback. Args and errors are as in `load_recipe`."""
    overrides = list(overrides)
    named = load_keys(path, ("model.family", "init_from", "run_name", "runs_folder"), overrides)
    with _naming(path):
        family = _family_name(*named.values())
    config = merged(path, schema_of(family), overrides)
    if named["model.family"] is None:
        config.merge_with({"model": {"family": family}})
    with _naming(path):
        fill_from_source(config)
    recipe: Recipe = instance(config, path)
    with _naming(path):
        recipe = in_tokens(recipe)
        for key, complaint in problems(recipe):
            raise ConfigurationError(f"'{key}': {complaint}")
        recipe = with_mixtures(recipe)
        plan = compile_stages(recipe)
        recipe = rollback_in_tokens(recipe, plan)
        with_set_rollback(recipe, plan)
    return recipe, plan


def fill_from_source(config: DictConfig) -> None:
    """Take from `init_from` the keys of the model's shape and the weights' knobs that a recipe omits.

    Args:
        config: typed by `schema_of` the family; changed in place.

    Raises:
        FoundryError: the recipe omits a key that no source has; or there is no `init_from`, or it has no model.
    """
    family = find_family(config.model.family)
    keys = [key.name for key in fields(family.Shape) if OmegaConf.is_missing(config.model, key.name)]
    omitted = {f"model.{key}" for key in keys}
    if others := sorted(OmegaConf.missing_keys(config) - omitted):  # first, because no source has them
        raise ConfigurationError(f"'{others[0]}' is required and not given")
    knobs = [
        knob
        for knob in family.knobs_of_weights()
        if config.model[knob] is None and any(stage[knob] is None for stage in config.stages.values())
    ]
    if keys or knobs:
        values = _values_of_source(config, family, [*keys, *knobs])
        for key in (*keys, *knobs):
            config.model[key] = values[key]
    for knob in family.knobs.keys() - set(family.knobs_of_weights()):  # trained weights do not determine these
        if config.model[knob] is None and any(stage[knob] is None for stage in config.stages.values()):
            raise ConfigurationError(f"'model.{knob}' is required and not given")


def _values_of_source(config: DictConfig, family: Family, keys: list[str]) -> dict[str, Any]:
    """Return the shape and the weights' knobs of the model at `init_from`, or those that the run began with."""
    if config.init_from is None:
        first = f"model.{keys[0]}"
        if keys[0] in family.knobs:
            stage = next(name for name, stage in config.stages.items() if stage[keys[0]] is None)
            first = f"stages.{stage}.{keys[0]}"
        raise ConfigurationError(f"'{first}' is required and not given; {NO_SOURCE}")
    begun = _begun(config.init_from, config.run_name, config.runs_folder)
    if begun is not None and all(getattr(begun.model, key) is not None for key in keys):
        return vars(begun.model)
    source = _source(config.init_from)
    if source.family is not family:
        raise ConfigurationError(
            f"'model.family': expected {source.family.name}, the family of the model at 'init_from', got "
            f"{family.name}; change one of the two"
        )
    return vars(source.shape) | source.knobs


def _family_name(family: str | None, init_from: str | None, run_name: str | None, runs_folder: str | None) -> str:
    """Return the family that a recipe names, or that of its source if it names none."""
    if family is not None:
        try:
            return find_family(family).name
        except ConfigurationError as error:
            raise ConfigurationError(f"'model.family': {error}") from None
    if init_from is None:
        raise ConfigurationError(f"'model.family' is required and not given; {NO_SOURCE}")
    begun = _begun(init_from, run_name, runs_folder or Recipe.runs_folder)
    return begun.model.family if begun is not None else _source(init_from).family.name


def _begun(init_from: str, run_name: str | None, runs_folder: str) -> Recipe | None:
    """Return the recipe of the run that this one resumes; None if it has no checkpoint yet, or began with another."""
    if run_name is None:
        return None
    run = RunFolder(Path(runs_folder) / run_name)
    if not run.recipe.is_file() or not complete_checkpoints(run.checkpoints.glob("ba*")):
        return None
    there = recipe_of(run)
    return there if there.init_from == init_from else None


def _source(init_from: str) -> Source:
    try:
        return read_source(init_from)
    except FoundryError as error:
        raise ConfigurationError(f"'init_from': {error}") from None


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    try:
        yield
    except FoundryError as error:
        raise ConfigurationError(f"{path}: {error}") from None
