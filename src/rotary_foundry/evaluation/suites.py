"""The suites there are, and what each of them has to give.

A suite is a module with two names in it:

- `Config`, a dataclass that builds on `SuiteConfig` or one of those below it: the keys of its YAML;
- `run(model: Path, config: Config) -> Result`: measures; it neither prints nor writes.

It may have a third, `check(model: Path, config: Config)`, called for every model and suite before the first of them is
measured: it raises `NeedsNetwork` if something has to be fetched and cannot be, and refuses what another file says.
What is wrong with the values of its own keys its `Config` knows, and is asked here, before anything is loaded; no suite
looks at them again. `yamls/eval/<suite>.yaml` is a suite with its defaults; any other YAML names its suite under the
key `suite`.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import rotary_foundry
from rotary_foundry.recipe.loading import load_config, load_key, refuse
from rotary_foundry.utils.errors import ConfigurationError
from rotary_foundry.utils.installing import install_command

if TYPE_CHECKING:
    from rotary_foundry.evaluation.results import Result

MODULES = {
    "masked_lm": "rotary_foundry.evaluation.masked_lm_loss",
    "context": "rotary_foundry.evaluation.context",
    "needle": "rotary_foundry.evaluation.needle",
    "retrieval": "rotary_foundry.evaluation.retrieval_suite",
    "glue": "rotary_foundry.evaluation.glue",
}
ALL = "all"  # of them, as their YAMLs set them, which want no network
FOLDER = Path("yamls/eval")


@dataclass
class SuiteConfig:
    """What every suite takes. A field without a default has to be given in a YAML."""

    suite: str  # by which a YAML says whose keys these are
    out: str | None = None  # the folder for results; null: the run's `evaluations`, or `evaluations` here

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (key, what is wrong and what would be right); only the first is ever asked for.

        Whatever is a whole number here counts something, of which there has to be one, but for the seed.
        """
        for key, value in vars(self).items():
            least = 0 if key == "seed" else 1
            if isinstance(value, int) and value < least:
                yield key, f"a number from {least} on is wanted, not {value}"


@dataclass
class ResampledConfig(SuiteConfig):
    """What a suite takes whose intervals are the bootstrap's."""

    seed: int = 0  # of whatever is drawn at random, the bootstrap included
    resamples: int = 1000  # of the bootstrap


@dataclass(kw_only=True)
class TextSuiteConfig(ResampledConfig):
    """What a suite takes that masks held-out documents."""

    data: str  # a folder that `python data_prep` wrote
    documents: int  # of each source, at most
    longest: int  # tokens that the model is given at once, or as many as it can take
    tokenizer: str | None = None  # a folder; null: the model's own
    rope_theta: float | None = None  # null: as it was trained

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if self.rope_theta is not None and not 0 < self.rope_theta < math.inf:
            yield "rope_theta", f"a number above 0 is wanted, not {self.rope_theta}"


@dataclass(frozen=True)
class Suite:
    """A suite, as a YAML sets it."""

    name: str
    config: SuiteConfig
    run: Callable[[Path, SuiteConfig], "Result"]
    check: Callable[[Path, SuiteConfig], None] | None  # none: there is nothing that could be missing


def find_suites(given: Sequence[str], overrides: Iterable[str] = ()) -> list[Suite]:
    """The suites of some names or YAML files, each with its configuration.

    Args:
        given: names such as `context`, paths of YAML files, or `all`.
        overrides: `key=value`, each for those of them that have the key.

    Raises:
        ConfigurationError: there is no such suite; or a key that none of them has, or a value that it cannot have.
    """
    overrides = list(overrides)
    modules = {path: _module(path) for one in given for path in _paths(one)}
    keys = [{field.name for field in fields(module.Config)} for module in modules.values()]

    def meant(override: str, of_suite: set[str]) -> bool:
        key = re.split(r"[.=\[]", override)[0]
        return key in of_suite or not any(key in others for others in keys)  # what none has is refused by its name

    found = []
    for (path, module), own in zip(modules.items(), keys, strict=True):
        config = load_config(path, module.Config, [one for one in overrides if meant(one, own)])
        refuse(path, config.problems())
        if any(suite.name == config.suite for suite in found):
            raise ConfigurationError(f"{path}: is for the suite {config.suite}, as another is: give one at a time")
        found.append(Suite(config.suite, config, module.run, getattr(module, "check", None)))
    return found


def _paths(given: str) -> list[Path]:
    if given == ALL:
        return [_folder() / f"{name}.yaml" for name in MODULES]
    if given in MODULES:
        return [_folder() / f"{given}.yaml"]
    if given.endswith((".yaml", ".yml")):
        return [Path(given)]
    raise ConfigurationError(f"there is no suite '{given}'; there are {', '.join(MODULES)}, and {ALL}, or give a YAML")


def _folder() -> Path:
    """The YAMLs of where one stands, or else those beside this code."""
    return FOLDER if FOLDER.is_dir() else Path(rotary_foundry.__file__).parents[2] / FOLDER


def _module(path: Path) -> ModuleType:
    """The module of the suite that a YAML is for."""
    name = load_key(path, "suite")
    if name not in MODULES:
        raise ConfigurationError(f"{path}: suite: '{name}' is none; there are {', '.join(MODULES)}")
    try:
        return import_module(MODULES[name])
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{name}: needs {error.name}; {install_command('eval')}") from error
