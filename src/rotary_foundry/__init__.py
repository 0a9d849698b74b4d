"""Rotary Foundry: a training recipe for modern long-context encoders.

The public API, which the commands use as well. Attributes are imported when they are asked for, so that a plan is
compiled, and a wrong recipe refused, without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rotary_foundry.interop import load_model
    from rotary_foundry.recipe import Plan, Recipe, compile_plan, load_recipe

__all__ = ["Plan", "Recipe", "compile_plan", "load_model", "load_recipe"]

_ROOMS = {"load_model": "rotary_foundry.interop"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'rotary_foundry' has no attribute '{name}'")
    return getattr(import_module(_ROOMS.get(name, "rotary_foundry.recipe")), name)
