"""Load YAML files into typed dataclasses.

There are four decisions:

- A file may name the files that it builds on under `extends:` (paths relative to itself, merged first, in order), so
  that base, large and nano share their common keys. Hydra is not used, because one merge rule is enough.
- Every file is merged into the typed schema *separately*, so that an unknown or ill-typed key is reported with the file
  that contains it, not with the file that was launched.
- Mappings are merged key by key, except those that are one value: an `executor`; a stage's `mixture`, `objective` and
  knobs; and an `objective` with another name. These replace the earlier mapping.
- A value of type str keeps its text as written, and so does a key that is a name. YAML 1.1 reads `no` as a boolean,
  007 as 7, 1.10 as 1.1 and 2026_11_28 as a number, so a run with such a name would get a different one. The value of an
  override is YAML only if it begins with a bracket, a brace or a quote. Otherwise it is a number or text, so that *.csv
  is a glob and not an alias.

A mapping such as `optimizer` has different keys for each value of one of its keys (`name`). Its field declares this
with `chosen_by`, and the chosen class types the mapping in every file.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import Field, fields, is_dataclass
from os.path import normpath
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError
from yaml.parser import ParserError
from yaml.scanner import ScannerError

from rotary_foundry.utils.errors import ConfigurationError
from rotary_foundry.utils.wording import nearest, one_line

Schema = TypeVar("Schema")
# OmegaConf's message for a value such as 3, of type int, where a mapping is expected.
NO_MAPPING = re.compile(r"(?:Cannot assign|Invalid type assigned:) (\w+) (?:to Dict|is not a subclass)")
NO_LIST = re.compile(r"Invalid value assigned: (\w+) is not a (?:ListConfig|TupleConfig)")
# PyYAML and OmegaConf raise these for values such as 2026-02-31, a date where a mapping is expected, and [[[[…
OF_VALUES = (ValueError, AssertionError, RecursionError)
MERGED = ("batch_size_ramp", "optimizer")  # the mappings of a stage that are merged key by key and not replaced
AS_WRITTEN = {"as_written": True}  # metadata of a field of type Any whose names keep their text as written


def chosen_by(key: str, among: Mapping[str, type]) -> dict[str, Any]:
    """Return the metadata of a field whose mapping is typed by the class in `among` that the mapping's `key` names."""
    return {"chosen_by": key, "among": among}


def load_config(path: str | Path, schema: type[Schema], overrides: Iterable[str] = ()) -> Schema:
    """Read a YAML file, and what it extends, into an instance of the dataclass `schema`.

    Args:
        path: the YAML file.
        schema: a dataclass; a field without a default must be given.
        overrides: `key=value` arguments, applied last; dots for nesting (`stages.extend.lr=1e-3`).

    Raises:
        ConfigurationError: naming the file (or the override) and the key.
    """
    return instance(merged(path, schema, overrides), path)


def merged(path: str | Path, schema: type, overrides: Iterable[str] = ()) -> DictConfig:
    """Merge a YAML file, the files that it extends and overrides, typed by `schema`; keys not given stay missing.

    Raises:
        ConfigurationError: as `load_config`.
    """
    config = OmegaConf.structured(schema)
    layers = list(_layers(Path(path), schema))
    arguments = [(override, *_as_layer(override, schema)) for override in overrides]
    for field in fields(schema):
        if "chosen_by" in field.metadata:
            _choose(config, field, [*layers, *(argument[1:] for argument in arguments)])
    for source, content in layers:
        config = _merge(config, content, source)
    for argument in arguments:
        _override(config, *argument)
    return config


def _choose(config: DictConfig, field: Field, layers: list[tuple[object, DictConfig]]) -> None:
    """Type a mapping by the class that the last layer with a name chooses; without a name it keeps its type."""
    key, among, chosen = field.metadata["chosen_by"], field.metadata["among"], None
    for source, content in layers:
        mapping = content.get(field.name)
        if isinstance(mapping, DictConfig) and mapping.get(key) is not None:
            chosen = source, mapping[key]
    if chosen is None:
        return
    source, name = chosen
    if not isinstance(name, str) or name not in among:
        raise ConfigurationError(f"{source}: '{field.name}.{key}': '{name}' is not known; {nearest(name, among)}")
    config[field.name] = OmegaConf.structured(among[name])


def instance(config: DictConfig, path: str | Path | None, prefix: str = "") -> Any:
    """Make the dataclass instance from a configuration that is typed by its class.

    Args:
        path, prefix: the file, and the prefix of keys, for errors; as in `reported`.

    Raises:
        ConfigurationError: a key is missing, or has a value of another type; names the file and the first such key.
    """
    begin = "" if path is None else f"{path}: "
    with reported(path, prefix):
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise ConfigurationError(f"{begin}'{prefix}{missing[0]}' is required and not given")
        made = OmegaConf.to_object(config)
    for key, complaint in not_plain(made):
        raise ConfigurationError(f"{begin}'{prefix}{key}': {complaint}")
    return made


def not_plain(value: Any, kind: Any = None, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield (key, complaint) for lists and mappings in place of plain values; OmegaConf accepts these inside lists.

    Args:
        value: an instance of a dataclass of the schema, or a value in it, of type `kind` and at `key`.
    """
    kinds = [one for one in get_args(kind) if one is not type(None)] if get_origin(kind) in (Union, UnionType) else []
    kind = kinds[0] if len(kinds) == 1 else kind
    if is_dataclass(value):
        hints = get_type_hints(type(value))
        for field in fields(value):
            yield from not_plain(getattr(value, field.name), hints[field.name], f"{key}.{field.name}".lstrip("."))
    elif kind in (bool, int, float, str):
        if isinstance(value, list | tuple | dict):
            yield key, f"expected a plain value, got {value!r:.60}"
    elif isinstance(value, dict) and (of := get_args(kind)):
        for name, one in value.items():
            yield from not_plain(one, of[-1], f"{key}.{name}")
    elif isinstance(value, list | tuple) and (of := get_args(kind)):
        for place, one in enumerate(value):
            yield from not_plain(one, of[-1], f"{key}[{place}]")


def origins(path: str | Path, overrides: Iterable[str] = ()) -> dict[tuple[str, ...], str]:
    """Return the origin of each value of a merged configuration, by its path of keys: a file, or "argument".

    A list counts as one value.

    Raises:
        ConfigurationError: as `load_config`.
    """
    found: dict[tuple[str, ...], str] = {}

    def note(content: object, source: str, keys: tuple[str, ...], inside: tuple[str, ...] = ()) -> None:
        is_mapping = isinstance(content, dict)
        is_anew = is_mapping and _is_whole(keys) and keys != inside[: len(keys)]
        if keys and (not is_mapping or is_anew):
            for other in [other for other in found if other[: len(keys)] == keys]:
                del found[other]
        if keys and not (is_mapping and content):
            found[keys] = source
        for key, value in content.items() if is_mapping else ():
            note(value, source, (*keys, str(key)), inside)

    for file, content in _layers(Path(path), str):
        note(OmegaConf.to_container(content), normpath(file), ())
    for override in overrides:
        *through, last = _parts(override)
        content = OmegaConf.to_container(_as_layer(override, str)[1])
        if last.isdecimal():  # an entry of a list
            found[tuple(through)] = "argument"
        else:
            note(content, "argument", (), tuple(through))
    return found


def refuse(path: str | Path, problems: Iterable[tuple[str, str]]) -> None:
    """Refuse a configuration that has a problem. A problem is a key, and a text that says what is wrong and what to do.

    Raises:
        ConfigurationError: there is a problem; names the file and the key.
    """
    for key, problem in problems:
        raise ConfigurationError(f"{path}: '{key}': {problem}")


def load_keys(path: str | Path, keys: Iterable[str], overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Return the values of some keys of a YAML file, the files it extends and the overrides; None for a missing key.

    Scalars are text. The caller may choose the schema by them.

    Raises:
        ConfigurationError: the file does not exist, or is not YAML.
    """
    layers = [content for _, content in _layers(Path(path), str)]
    given = [(override.partition("=")[0], _as_layer(override, str)[1]) for override in overrides]
    with reported(path):
        of_files, found = OmegaConf.unsafe_merge(*layers), {}
        for key in keys:
            above = [content for name, content in given if f"{key}.".startswith(f"{name}.")]
            found[key] = OmegaConf.select(OmegaConf.merge(of_files, *above) if above else of_files, key)
    return found


def _layers(path: Path, kind: type, above: tuple[Path, ...] = ()) -> Iterator[tuple[Path, DictConfig]]:
    """Yield the files that make up `path`, those it extends first, each without its `extends` key.

    Args:
        kind: the schema; str: every scalar becomes text.
    """
    if path.resolve() in above:
        raise ConfigurationError(f"{path}: the file extends itself; remove it from 'extends'")
    try:
        content = OmegaConf.load(path)
    except FileNotFoundError:
        wanted_by = f" (which {above[-1]} extends)" if above else ""
        raise ConfigurationError(f"{path}: no such file{wanted_by}") from None
    except (OSError, UnicodeDecodeError) as error:  # OmegaConf raises OSError for a bare number, too
        raise ConfigurationError(f"{path}: cannot be read as a YAML file: {error}") from None
    except (YAMLError, OmegaConfBaseException, *OF_VALUES) as error:
        remedy = "; put text with such characters in quotes" if isinstance(error, ScannerError) else ""
        raise ConfigurationError(f"{path}: not valid YAML: {one_line(error)}{remedy}") from None
    if not isinstance(content, DictConfig):
        raise ConfigurationError(f"{path}: expected a mapping of keys to values, got a list")
    content = _with_text(content, yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader), kind)
    with reported(path):
        extends = content.pop("extends", [])
        extends = list(extends) if isinstance(extends, ListConfig) else extends
    if not isinstance(extends, list) or not all(isinstance(parent, str) for parent in extends):
        raise ConfigurationError(f"{path}: 'extends': expected a list of files, as in [{extends}]")
    for parent in extends:
        yield from _layers(path.parent / parent, kind, (*above, path.resolve()))
    yield path, content


def _with_text(content: DictConfig, text: Any, kind: type) -> DictConfig:
    """Return a configuration in which values of type str have their text as written."""
    return OmegaConf.create(_as_written(OmegaConf.to_container(content), text, kind))


def _as_written(value: Any, text: Any, kind: Any) -> Any:
    """Return a value as its key's type requires: as text for str, otherwise as YAML reads it.

    Args:
        value: as YAML reads it.
        text: the same value with every scalar as text.
        kind: the key's type.
    """
    if get_origin(kind) in (Union, UnionType):
        kind = next(one for one in get_args(kind) if one is not NoneType)
    inner = get_args(kind)[-1] if get_origin(kind) in (list, dict) else str if kind is str else Any
    if isinstance(value, dict) and isinstance(text, dict) and len(value) == len(text):  # they differ with YAML's <<
        pairs = zip(text.items(), value.values(), strict=True)
        return {key: _as_written(of, its, _type_of(key, kind, inner)) for (key, its), of in pairs}
    if isinstance(value, list) and isinstance(text, list):
        return [_as_written(of, its, inner) for of, its in zip(value, text, strict=True)]
    return text if kind is str and value is not None and isinstance(text, str) else value


def _type_of(key: str, kind: Any, otherwise: Any) -> Any:
    """Return the type of a key in a mapping of type `kind`."""
    if not is_dataclass(kind):
        return otherwise
    named = {field.name for field in fields(kind) if field.metadata.get("as_written")}
    return str if key in named else get_type_hints(kind).get(key, Any)


def _merge(config: DictConfig, content: DictConfig, source: object) -> DictConfig:
    with reported(source):
        _forget_wholes(config, content)
        return OmegaConf.unsafe_merge(config, content)


def _is_whole(keys: tuple[str, ...]) -> bool:
    """Return whether a mapping at these keys replaces the earlier one."""
    return keys == ("executor",) or (len(keys) == 3 and keys[0] == "stages" and keys[2] not in MERGED)


def _forget_wholes(config: DictConfig, content: DictConfig) -> None:
    """Remove the mappings from `config` that `content` replaces."""
    if "executor" in config and isinstance(content.get("executor"), DictConfig):
        config["executor"] = {}
    objective = content.get("objective")
    if "objective" in config and isinstance(objective, DictConfig):
        name = objective.get("name", config.objective.get("name"))
        if config.objective.get("name") != name:
            config["objective"] = {}
    stages = content.get("stages") if "stages" in config else None
    for name, stage in stages.items() if isinstance(stages, DictConfig) else ():
        if name in config.stages and isinstance(stage, DictConfig):
            for key, value in stage.items():
                if isinstance(value, DictConfig) and _is_whole(("stages", name, key)) and key in config.stages[name]:
                    config.stages[name][key] = None


def _override(config: DictConfig, override: str, source: str, content: DictConfig) -> None:
    key, parts = override.partition("=")[0], _parts(override)
    with reported(source):
        if not any(_is_whole(tuple(parts[:depth])) for depth in range(1, len(parts))):  # else a key inside a whole
            _forget_wholes(config, content)
        given = content
        for part in parts:
            given = given[part]
        OmegaConf.update(config, key, given, merge=True)


def _parts(override: str) -> list[str]:
    """Return the keys of an override, from the outermost to the innermost."""
    return override.partition("=")[0].replace("[", ".").replace("]", "").split(".")


def _as_layer(override: str, kind: type) -> tuple[str, DictConfig]:
    """Return the name of an override for errors, and its content in the form of a file; `kind` as in `_layers`."""
    key, equals, given = override.partition("=")
    if not equals or not key:
        raise ConfigurationError(f"argument '{' '.join(override.split())}': overrides are written key=value")
    source = f"argument '{' '.join(override.split())}'"  # an error is one line
    try:
        override.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(f"argument {os.fsencode(override)!r}: expected UTF-8; rename what it names") from None
    with reported(source):
        value, text = _value_and_text(given.strip(), source) if given.strip() else (given or None, given)
        for part in reversed(_parts(override)):
            value, text = {part: value}, {part: text}
        return source, _with_text(OmegaConf.create(value), text, kind)


def _value_and_text(given: str, source: str) -> tuple[Any, Any]:
    """Return the value of an override as YAML reads it, and with every scalar as text."""
    is_yaml = given.startswith(("[", "{", '"', "'"))
    try:
        value = OmegaConf.to_container(OmegaConf.create(f"value: {given}"))["value"]
    except YAMLError as error:
        if not is_yaml:
            return given, given
        remedy = "; put text with such characters in quotes" if isinstance(error, ScannerError | ParserError) else ""
        raise ConfigurationError(f"{source}: {one_line(error)}{remedy}") from None
    if is_yaml:
        return value, yaml.load(given, yaml.BaseLoader)
    is_text = isinstance(value, str | dict | list) or not {"#", "&", "!"}.isdisjoint(given)  # such as 5 # comment
    return given if is_text else value, given


@contextmanager
def reported(source: object | None, prefix: str = "") -> Iterator[None]:
    """Turn what OmegaConf raises into a ConfigurationError that names the source, if there is one, and the key.

    Args:
        prefix: put before keys if only a part of a recipe is checked.
    """
    begin = "" if source is None else f"{source}: "
    try:
        yield
    except (ConfigAttributeError, ConfigKeyError) as error:
        raise ConfigurationError(f"{begin}unknown key '{prefix}{error.full_key}'{_suggestion(error)}") from error
    except OmegaConfBaseException as error:
        key = f"'{prefix}{error.full_key}': " if error.full_key else ""
        complaint = str(error).strip().splitlines()[0]
        if "incompatible container types" in complaint:
            complaint = "expected a mapping of keys to values, got a list, or expected a list, got a mapping"
        elif found := NO_MAPPING.match(complaint):
            complaint = f"expected a mapping of keys to values, got {found[1]}"
        elif found := NO_LIST.match(complaint):
            complaint = f"expected a list, got {found[1]}; put brackets around it, as in [a] or [a, b]"
        raise ConfigurationError(f"{begin}{key}{complaint}") from error
    except (TypeError, YAMLError, *OF_VALUES) as error:
        raise ConfigurationError(f"{begin}{one_line(error)}") from error


def _suggestion(error: OmegaConfBaseException) -> str:
    """Suggest the known key of the same level that is nearest to the unknown one."""
    if not is_dataclass(error.object_type):
        return ""
    return "; " + nearest(error.key, [field.name for field in fields(error.object_type)])
