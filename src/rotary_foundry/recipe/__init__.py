"""The recipe, one YAML file that describes a complete training run, and the plan compiled from it. Imports no torch."""

from rotary_foundry.recipe.compilation import compile_plan
from rotary_foundry.recipe.plan import Plan
from rotary_foundry.recipe.schema import Recipe

__all__ = ["Plan", "Recipe", "compile_plan"]
