"""datatrove's filters by their names, as a data YAML gives them: `GopherQualityFilter`, or with arguments
`{LanguageFilter: {languages: [en]}}`. Their arguments are datatrove's own; what they mean stands in its docstrings.
"""

import inspect
import logging
from typing import Any

from datatrove.pipeline import filters
from datatrove.pipeline.filters.base_filter import BaseFilter

from rotary_foundry.utils.errors import ConfigurationError
from rotary_foundry.utils.installing import install_command

# LambdaFilter takes a function, which cannot stand in a YAML file.
FILTERS = {
    name: filter_
    for name, filter_ in vars(filters).items()
    if inspect.isclass(filter_) and issubclass(filter_, BaseFilter) and name != "LambdaFilter"
}


def make_filter(entry: Any) -> BaseFilter:
    """The filter that an entry of a source's `filters` stands for.

    Raises:
        ConfigurationError: there is no such filter, it takes other arguments, or packages that it needs are missing.
    """
    name, arguments = next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else (entry, {})
    if not isinstance(name, str) or name not in FILTERS:
        raise ConfigurationError(f"no filter '{name}'; there are {', '.join(sorted(FILTERS))}")
    arguments = arguments or {}
    if not isinstance(arguments, dict):
        raise ConfigurationError(f"{name}: arguments are wanted by name, as in {{{name}: {{key: value}}}}")
    known = inspect.signature(FILTERS[name]).parameters.keys() - {"exclusion_writer"}
    if unknown := sorted(arguments.keys() - known):
        raise ConfigurationError(f"{name}: unknown argument '{unknown[0]}'; it takes {', '.join(sorted(known))}")
    if name == "SamplerFilter" and arguments.get("seed") is None:
        raise ConfigurationError("SamplerFilter: wants a seed; without one, each run would give other shards")
    # offline it explains at length that it takes its own list
    logging.getLogger("tldextract").setLevel(logging.CRITICAL)
    try:
        return FILTERS[name](**arguments)
    except ImportError as error:
        raise ConfigurationError(f"{error} All that filters need: {install_command('filters')}") from error
    except Exception as error:  # each raises what it likes
        raise ConfigurationError(f"{name}: {error}") from error
