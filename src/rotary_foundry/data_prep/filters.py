"""Make datatrove's filters from their names in a data YAML.

An entry is a name, such as `GopherQualityFilter`, or a name with arguments, such as `{LanguageFilter: {languages:
[en]}}`. The arguments are datatrove's; its docstrings explain them.
"""

import inspect
import logging
from typing import Any

from datatrove.pipeline import filters
from datatrove.pipeline.filters.base_filter import BaseFilter

from rotary_foundry.utils.errors import ConfigurationError
from rotary_foundry.utils.installing import install_command

# LambdaFilter takes a function, which a YAML file cannot contain.
FILTERS = {
    name: filter_
    for name, filter_ in vars(filters).items()
    if inspect.isclass(filter_) and issubclass(filter_, BaseFilter) and name != "LambdaFilter"
}


def make_filter(entry: Any) -> BaseFilter:
    """Make the filter for one entry of a source's `filters`.

    Raises:
        ConfigurationError: the filter does not exist, takes other arguments, or needs a package that is not installed.
    """
    name, arguments = next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else (entry, {})
    if not isinstance(name, str) or name not in FILTERS:
        raise ConfigurationError(f"no filter '{name}'; there are {', '.join(sorted(FILTERS))}")
    arguments = arguments or {}
    if not isinstance(arguments, dict):
        raise ConfigurationError(f"{name}: expected arguments by name, as in {{{name}: {{key: value}}}}")
    known = inspect.signature(FILTERS[name]).parameters.keys() - {"exclusion_writer"}
    if unknown := sorted(map(str, arguments.keys() - known)):
        raise ConfigurationError(f"{name}: unknown argument '{unknown[0]}'; it takes {', '.join(sorted(known))}")
    if name == "SamplerFilter" and arguments.get("seed") is None:
        raise ConfigurationError("SamplerFilter: seed is missing; set one, or each run would give different shards")
    # offline, the filter logs at length that it falls back to its own list
    logging.getLogger("tldextract").setLevel(logging.CRITICAL)
    try:
        return FILTERS[name](**arguments)
    except ImportError as error:
        raise ConfigurationError(
            f"{error} To install everything that filters need: {install_command('filters')}"
        ) from error
    except Exception as error:  # each filter raises errors of its own
        raise ConfigurationError(f"{name}: {error}") from error
