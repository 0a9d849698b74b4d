"""Build typed objects from the parts of a recipe that are chosen by name, `{name: …, **arguments}`."""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

from omegaconf import OmegaConf

from rotary_foundry.recipe.loading import instance, reported
from rotary_foundry.utils.errors import ConfigurationError
from rotary_foundry.utils.wording import nearest


def build(table: Mapping[str, str], given: str | Mapping[str, Any] | None, key: str) -> Any:
    """Build the part that `given` names.

    Args:
        table: `module:class` by name; the classes are dataclasses whose fields are the arguments.
        given: a name, or a mapping of `name` and arguments.
        key: the part's key in the recipe, for errors.

    Raises:
        ConfigurationError: a name or argument is unknown, missing or of a wrong type; names the key, and the nearest
            known one.
    """
    arguments = dict(given) if isinstance(given, Mapping) else {"name": given}
    name = arguments.pop("name", None)
    if not isinstance(name, str) or name not in table:
        raise ConfigurationError(f"'{key}.name': '{name}' is not known; {nearest(name, table)}")
    with reported(None, f"{key}."):
        config = OmegaConf.unsafe_merge(OmegaConf.structured(load(table[name])), arguments)
    return instance(config, None, f"{key}.")


@cache
def load(place: str) -> Any:
    """Import the object that a "module:name" names."""
    module, name = place.split(":")
    return getattr(import_module(module), name)
