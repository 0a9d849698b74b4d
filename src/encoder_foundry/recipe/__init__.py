"""A recipe: one YAML file that is one whole training run, and the plan compiled from it. Imports no torch."""

from collections.abc import Iterable
from pathlib import Path

from encoder_foundry.errors import ConfigurationError
from encoder_foundry.recipe.loading import load_config
from encoder_foundry.recipe.plan import Plan, compile_plan
from encoder_foundry.recipe.schema import Recipe
from encoder_foundry.recipe.validation import problems

__all__ = ["Plan", "Recipe", "compile_plan", "load_recipe"]


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Load and check a recipe.

    Args:
        path: the YAML file.
        overrides: `key=value` arguments, dots for nesting (`optimizer.eps=1e-8`), applied last.

    Raises:
        ConfigurationError: naming the file, the key, and what would be right.
    """
    recipe = load_config(path, Recipe, overrides)
    for key, complaint in problems(recipe):
        raise ConfigurationError(f"{path}: '{key}': {complaint}")
    try:
        compile_plan(recipe)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from None
    return recipe
