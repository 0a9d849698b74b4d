"""Print the merged recipe as YAML, with the source of each value in a comment after it.

The output is itself a recipe, without `extends` and with every key. Secrets are redacted. Imports no torch.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from rotary_foundry.recipe.loading import merged, origins
from rotary_foundry.recipe.schema import schema_of
from rotary_foundry.runs.recipes import load_recipe
from rotary_foundry.utils.redaction import redacted

FARTHEST = 60  # column of a comment after a long value
INDENT = "  "


def merged_recipe(path: str | Path, overrides: Iterable[str] = ()) -> str:
    """Return a recipe as YAML text, each value with its source: a file, `argument`, `default`, or `init_from`.

    Raises:
        ConfigurationError: the recipe is invalid.
    """
    overrides = list(overrides)
    recipe = load_recipe(path, overrides)
    given, filled = merged(path, schema_of(recipe.model.family), overrides), OmegaConf.structured(recipe)
    sources = origins(path, overrides)

    def source(keys: tuple[str, ...]) -> str:
        if keys in sources:
            return sources[keys]
        if _value(given, keys[:-1]) is None:  # a mixture that no file or argument gives
            return "from long_share"
        is_default = _value(given, keys) == _value(filled, keys)
        return "default" if is_default else f"init_from: {redacted(recipe.init_from)}"

    whole = asdict(recipe)
    lines = [(text, source(keys) if keys else None) for text, keys in _lines(redacted(whole), ())]
    width = min(FARTHEST, max(len(text) for text, source in lines if source is not None))
    return "".join(f"{text:{width}}  # {source}\n" if source else f"{text}\n" for text, source in lines)


def _lines(content: dict[str, Any], keys: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...] | None]]:
    """Yield a line for each value with its keys, and a line without keys for each mapping around values."""
    for key, value in content.items():
        start = f"{INDENT * len(keys)}{_flow(key)}:"
        if isinstance(value, dict) and value:
            yield start, None
            yield from _lines(value, (*keys, str(key)))
        else:
            yield f"{start} {_flow(value)}", (*keys, str(key))


def _flow(value: Any) -> str:
    """Format a value on one line."""
    if isinstance(value, str) and "\n" in value:
        return json.dumps(value)
    value = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _value(config: Any, keys: tuple[str, ...]) -> Any:
    """Return the value at nested keys; None if there is none."""
    for key in keys:
        if config is None or OmegaConf.is_missing(config, key):
            return None
        config = config[key]
    return config
