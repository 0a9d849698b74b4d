"""A recipe: one YAML file that is one whole training run, and the plan compiled from it. Imports no torch."""

from collections.abc import Iterable
from pathlib import Path

from rotary_foundry.recipe.loading import instance, merged, refuse
from rotary_foundry.recipe.plan import Plan, compile_plan
from rotary_foundry.recipe.schema import Recipe
from rotary_foundry.recipe.validation import problems
from rotary_foundry.runs.trained_state import fill_from_source
from rotary_foundry.utils.errors import ConfigurationError, FoundryError

__all__ = ["Plan", "Recipe", "compile_plan", "load_recipe"]


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Load and check a recipe. What it leaves open of the model is that of its `init_from` (see source.py).

    Args:
        path: the YAML file.
        overrides: `key=value` arguments, dots for nesting (`optimizer.eps=1e-8`), applied last.

    Raises:
        ConfigurationError: naming the file, the key, and what would be right.
    """
    config = merged(path, Recipe, overrides)
    try:
        fill_from_source(config)
    except FoundryError as error:
        raise ConfigurationError(f"{path}: {error}") from None
    recipe: Recipe = instance(config, path)
    refuse(path, problems(recipe))
    try:
        compile_plan(recipe)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from None
    return recipe
