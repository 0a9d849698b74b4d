"""The list of suites, and the interface that a suite implements.

A suite is a module with two names in it:

- `Config`, a dataclass derived from `SuiteConfig` or from one of its subclasses below: the keys of its YAML;
- `run(model: Path, config: Config) -> Result`: measures; it neither prints nor writes.

It may have a third, `check(model: Path, config: Config)`. It is called for every model and suite before the first is
measured. It raises `NeedsNetwork` if necessary data cannot be downloaded, and checks other files. The values of the
suite's own keys are checked by its `Config.problems`, which is called here before anything is loaded; no suite checks
them again. `yamls/eval/<suite>.yaml` is a suite with its defaults; any other YAML names its suite under the key
`suite`.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import rotary_foundry
from rotary_foundry.data_prep.inspection.held_out_texts import check_held_out
from rotary_foundry.recipe.loading import load_config, load_keys, refuse
from rotary_foundry.utils.errors import ConfigurationError
from rotary_foundry.utils.installing import install_command

if TYPE_CHECKING:
    from rotary_foundry.evaluation.results import Result

ENCODERS = {
    "masked_lm": "rotary_foundry.evaluation.masked_lm_loss",
    "context": "rotary_foundry.evaluation.context",
    "needle": "rotary_foundry.evaluation.needle",
    "retrieval": "rotary_foundry.evaluation.retrieval_suite",
    "glue": "rotary_foundry.evaluation.glue",
}
DECODERS = {
    "causal_lm": "rotary_foundry.evaluation.causal_lm_loss",
    "causal_context": "rotary_foundry.evaluation.causal_context",
    "recall": "rotary_foundry.evaluation.recall",
    "question_answering": "rotary_foundry.evaluation.question_answering",
}
OF_RUNS = {"tasks": "rotary_foundry.evaluation.task_metrics"}  # only for multi-task runs
MODULES = ENCODERS | DECODERS | OF_RUNS
ALL = "all"  # the suites for the kind of model, with the settings of their YAMLs; they need no network
ONLY_BY_NAME = ("question_answering",)  # not part of `all`: the user has to name its data
FOLDER = Path("yamls/eval")


@dataclass
class SuiteConfig:
    """The keys of every suite. A YAML must set each field that has no default."""

    suite: str  # the suite that the YAML is for
    out: str | None = None  # the folder for results; null: the run's `evaluations`, or `evaluations` here

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (key, what was expected and what was found). The caller reports only the first.

        Every integer key is a count that must be at least 1, except the seed and the number of shots.
        """
        for key, value in vars(self).items():
            least = 0 if key in ("seed", "shots") else 1
            if isinstance(value, int) and not isinstance(value, bool) and value < least:
                yield key, f"expected an integer of at least {least}, got {value}"


@dataclass
class ResampledConfig(SuiteConfig):
    """The keys of a suite with bootstrap intervals."""

    seed: int = 0  # of everything random, including the bootstrap
    resamples: int = 1000  # of the bootstrap


@dataclass(kw_only=True)
class TextSuiteConfig(ResampledConfig):
    """The keys of a suite that masks held-out documents."""

    data: str  # a folder that `python data_prep` wrote
    documents: int  # of each source, at most
    longest: int  # the most tokens that the model gets at once; fewer if the model takes fewer
    tokenizer: str | None = None  # a folder; null: the model's own
    rope_theta: float | None = None  # null: as it was trained

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        yield from _theta_problems(self.rope_theta)


@dataclass(kw_only=True)
class DecoderConfig(ResampledConfig):
    """The keys of a suite for decoders. Models of our families can have other positions than in training."""

    tokenizer: str | None = None  # a folder; null: the model's own
    rope_theta: float | None = None  # null: as in training, also for the next two keys
    rope_scaling: str | None = None  # none, linear, ntk or yarn; yarn's original length is the training length
    rope_factor: float | None = None  # new context length over the old, for rope_scaling

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        yield from _theta_problems(self.rope_theta)
        if self.rope_factor is None and self.rope_scaling not in (None, "none"):
            yield "rope_factor", f"null, but rope_scaling is {self.rope_scaling}; give how many times it lengthens"


@dataclass(kw_only=True)
class DecoderSuiteConfig(DecoderConfig):
    """The keys of a suite for decoders that reads held-out text."""

    data: str  # a folder that `python data_prep` wrote, or a text file
    documents: int  # of each source, at most


def _theta_problems(rope_theta: float | None) -> Iterator[tuple[str, str]]:
    if rope_theta is not None and not 0 < rope_theta < math.inf:
        yield "rope_theta", f"expected a number above 0, got {rope_theta}"


def check_data(_: Path, config: TextSuiteConfig) -> None:
    """Check that the data has held-out rows. This is a suite's `check`, which runs before any suite.

    Raises:
        DataError: the data has no held-out rows.
    """
    check_held_out(config.data)


@dataclass(frozen=True)
class Suite:
    """A suite with the settings of a YAML."""

    name: str
    config: SuiteConfig
    run: Callable[[Path, SuiteConfig], "Result"]
    check: Callable[[Path, SuiteConfig], None] | None  # None: nothing to check
    data_given: bool = True  # whether the user named its data, or it has none


def find_suites(
    given: Sequence[str],
    overrides: Iterable[str] = (),
    decoder: bool = False,
    own_data: Callable[[], str | None] = lambda: None,
) -> list[Suite]:
    """Return the suites for names or YAML files, each with its configuration.

    Args:
        given: names such as `context`, paths of YAML files, or `all`.
        overrides: `key=value`, each applied to the suites that have the key.
        decoder: whether `all` means the suites for decoders.
        own_data: returns the data of the first model, used by suites that are given by name if no override names data;
            None: those of the suite's YAML.

    Raises:
        ConfigurationError: the suite does not exist, no suite has a key, or a value is not allowed.
    """
    overrides = list(overrides)
    named = {path for one in given if one in (ALL, *MODULES) for path in _paths(one, decoder)}
    modules = {path: _module(path) for one in given for path in _paths(one, decoder)}
    keys = [{field.name for field in fields(module.Config)} for module in modules.values()]

    keys_given = [re.split(r"[.=\[]", override)[0] for override in overrides]

    def meant(key: str, of_suite: set[str]) -> bool:
        return key in of_suite or not any(
            key in others for others in keys
        )  # a key that no suite has is refused by name

    found = []
    for (path, module), own in zip(modules.items(), keys, strict=True):
        config = load_config(
            path, module.Config, [one for one, key in zip(overrides, keys_given, strict=True) if meant(key, own)]
        )
        refuse(path, config.problems())
        if any(suite.name == config.suite for suite in found):
            raise ConfigurationError(f"{path}: another YAML is for the same suite, {config.suite}; give one at a time")
        by_default = path in named and "data" in own and "data" not in keys_given
        if by_default and config.data is not None and (data := own_data()) is not None:
            config = replace(config, data=data)
        found.append(Suite(config.suite, config, module.run, getattr(module, "check", None), not by_default))
    return found


def _paths(given: str, decoder: bool) -> list[Path]:
    if given == ALL:
        names = DECODERS if decoder else ENCODERS
        return [_folder() / f"{name}.yaml" for name in names if name not in ONLY_BY_NAME]
    if given in MODULES:
        return [_folder() / f"{given}.yaml"]
    if given.endswith((".yaml", ".yml")):
        return [Path(given)]
    raise ConfigurationError(f"no suite '{given}'; there are {', '.join(MODULES)} and {ALL}; or give a YAML")


def _folder() -> Path:
    """Return the folder of YAMLs: the working directory's if it exists, else the package's copy."""
    return FOLDER if FOLDER.is_dir() else Path(rotary_foundry.__file__).parent / FOLDER


def _module(path: Path) -> ModuleType:
    """Return the module of a YAML's suite."""
    name = load_keys(path, ["suite"])["suite"]
    if not isinstance(name, str) or name not in MODULES:
        raise ConfigurationError(f"{path}: suite: no suite '{name}'; there are {', '.join(MODULES)}")
    try:
        return import_module(MODULES[name])
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{name}: needs {error.name}; {install_command('eval')}") from error
