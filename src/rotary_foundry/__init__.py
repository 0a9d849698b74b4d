"""Rotary Foundry: training recipes for long-context transformers with rotary positions.

This is the public API, which the commands use too. Attributes are imported on access, so that compiling a plan or
refusing a wrong recipe does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rotary_foundry.interop import load_model
    from rotary_foundry.recipe import Plan, Recipe, compile_plan
    from rotary_foundry.runs.recipes import load_recipe

__all__ = ["Plan", "Recipe", "compile_plan", "load_model", "load_recipe"]

_MODULES = {"load_model": "rotary_foundry.interop", "load_recipe": "rotary_foundry.runs.recipes"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'rotary_foundry' has no attribute '{name}'")
    return getattr(import_module(_MODULES.get(name, "rotary_foundry.recipe")), name)
