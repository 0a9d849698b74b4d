"""Define the labelled example, which readers return and encoders take, and read JSON files row by row."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rotary_foundry.utils.errors import DataError
from rotary_foundry.utils.json_text import parse_json


class Choices(NamedTuple):
    """A text with a place for one of several choices: the texts before it, the choices, the texts after it."""

    before: tuple[str, ...]
    choices: tuple[str, ...]
    after: tuple[str, ...] = ()


class Span(NamedTuple):
    """A part of a text: `text[start:end]`."""

    kind: str
    start: int
    end: int


@dataclass(frozen=True)
class Example:
    """A labelled example, as stored in the data.

    `text` and `label` depend on the type of the task:

        sequence, regression  a text or a pair of texts, and a class or a number
        token                 a list of words, and a list of equally many classes
        choice                Choices, and the index of the right one
        answer                (question, passage), and the answers as Spans of the passage; the first is learned
        entities              a text, and its entities as Spans

    `label` is None if the example has none, as in CLUE's test files.
    """

    where: str  # file:line, or data set, split and row
    text: Any
    label: Any
    id: Any = None  # for predictions
    group: Any = None  # examples with the same group share their choices; each choice answers at most one of them


def json_lines(file: Path) -> Iterator[tuple[str, dict]]:
    """Yield (file:line, object) of a file with one JSON object per line; blank lines are skipped.

    Raises:
        DataError: a line is not a JSON object.
    """
    with file.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = parse_json(line, object_pairs_hook=_once)
            except ValueError as error:
                raise DataError(f"{file}:{number}: expected one JSON object per line; invalid JSON: {error}") from None
            if not isinstance(row, dict):
                raise DataError(
                    f"{file}:{number}: expected a JSON object with one key per column, got {type(row).__name__}"
                )
            yield f"{file}:{number}", row


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object, and refuse a key that occurs twice; Python would silently take the last one."""
    keys = [key for key, _ in pairs]
    if several := [key for key in keys if keys.count(key) > 1]:
        raise ValueError(f"the key '{several[0]}' occurs twice")
    return dict(pairs)


def whole_json(file: Path, kind: type) -> Any:
    """Return the content of a JSON file, which is an object (dict) or an array (list).

    Raises:
        DataError: the file is not JSON, or of another kind.
    """
    try:
        content = parse_json(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{file}: not valid JSON: {error}") from None
    if not isinstance(content, kind):
        raise DataError(f"{file}: expected one JSON {'object' if kind is dict else 'array'} in the whole file")
    return content
