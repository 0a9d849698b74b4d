"""Import, check and make the callbacks, algorithms and loggers that a recipe names.

They run after our own, in the recipe's order, so that they see an update's records and cannot run between two of ours.
Checkpoints do not hold their state (callbacks/checkpoint_saver.py, NOT_SAVED): a resumed or rolled-back run makes new
objects. So an algorithm that changes training must derive its state from the token clock (`state.timestamp`), as our
own do. Otherwise a resumed run differs from an uninterrupted one.
"""

import importlib
import inspect
from typing import Any

import composer.algorithms
import composer.callbacks
import composer.loggers
from composer.core import Algorithm, Callback
from composer.loggers import LoggerDestination

from rotary_foundry.recipe import Recipe
from rotary_foundry.recipe.extension_names import KINDS
from rotary_foundry.utils.errors import ConfigurationError
from rotary_foundry.utils.wording import nearest, one_line

COMPOSERS = {
    "callbacks": (composer.callbacks, Callback),
    "algorithms": (composer.algorithms, Algorithm),
    "loggers": (composer.loggers, LoggerDestination),
}
OWN_ARGUMENTS = {"wandb": {"checkpoint_references"}}  # of training/loggers.py


def check_extensions(recipe: Recipe) -> None:
    """Import every class that a recipe names, and check the given arguments against it.

    Raises:
        ConfigurationError: a class or an argument is refused; names the key.
    """
    for key in KINDS:
        for name, arguments in _given(recipe, key).items():
            _check_arguments(key, name, arguments)


def extensions(recipe: Recipe, key: str, without: tuple[str, ...] = ()) -> list[Any]:
    """Make the objects that a recipe names under `callbacks`, `algorithms` or `loggers`, in its order.

    Args:
        recipe: a recipe that `check_extensions` accepted.
        key: one of the three keys.
        without: names to skip, because other code makes them.

    Raises:
        ConfigurationError: a class refuses a value.
    """
    made = []
    for name, arguments in _given(recipe, key).items():
        if name not in without:
            try:
                made.append(_class_of(key, name)(**arguments))
            except (TypeError, ValueError, ImportError) as error:  # Composer's MissingConditionalImportError is one
                raise ConfigurationError(f"'{key}.{name}': {one_line(error)}") from error
    return made


def _given(recipe: Recipe, key: str) -> dict[str, dict[str, Any]]:
    return {name: dict(arguments) for name, arguments in getattr(recipe, key).items() if arguments is not None}


def _class_of(key: str, name: str) -> type:
    _, base = COMPOSERS[key]
    if name in KINDS[key].names:
        return _composers_class(key, name)
    module_name, _, class_name = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except ImportError as error:
        raise ConfigurationError(
            f"'{key}.{name}': {one_line(error)}; install the package, or add its folder to PYTHONPATH"
        ) from error
    except AttributeError as error:
        raise ConfigurationError(f"'{key}.{name}': {one_line(error)}") from error
    except Exception as error:  # importing a module may raise anything
        raise ConfigurationError(f"'{key}.{name}': the import fails: {one_line(error)}") from error
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise ConfigurationError(f"'{key}.{name}' is not a class derived from {base.__module__}.{base.__name__}")
    for refused, why in KINDS[key].refused.items():
        if found is _composers_class(key, refused):
            raise ConfigurationError(f"'{key}.{name}': {why}")
    return found


def _composers_class(key: str, name: str) -> type:
    """Find Composer's class by its name in a recipe: `lr_monitor` is LRMonitor, `file` is FileLogger."""
    module, _ = COMPOSERS[key]
    names = name.replace("_", ""), f"{name.replace('_', '')}logger"
    return next(found for known, found in vars(module).items() if inspect.isclass(found) and known.lower() in names)


def _check_arguments(key: str, name: str, arguments: dict[str, Any]) -> None:
    found, own = _class_of(key, name), OWN_ARGUMENTS.get(name, set())
    inherited = found.__init__ is COMPOSERS[key][1].__init__  # it accepts any arguments and ignores them
    parameters = {} if inherited else inspect.signature(found).parameters
    key = f"{key}.{name}"
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    named = [name for name, each in parameters.items() if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    for argument in arguments:
        if argument not in named and argument not in own and not takes_any:
            known = nearest(argument, [*named, *own]) if named else "it takes none"
            raise ConfigurationError(f"'{key}': {found.__name__} takes no argument '{argument}'; {known}")
    for name in named:
        if parameters[name].default is inspect.Parameter.empty and name not in arguments:
            raise ConfigurationError(f"'{key}': {found.__name__} needs the argument '{name}', which is missing")
