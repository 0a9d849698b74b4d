"""Parse the lines of JSONL files: what orjson refuses is tried again, and keys that occur twice are found."""

import json
import re
from collections.abc import Callable

import orjson

ESCAPED_KEY = re.compile(rb'[{,]\s*"[^"\\]*\\u[^"]*"\s*:')  # in a line of JSON


def json_row(line: bytes, texts: bool) -> dict | list[str]:
    """Parse a line as a JSON object or, if `texts`, as a list of texts.

    Raises:
        ValueError: the line is neither.
    """
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        row = _lenient(line)
    if isinstance(row, list) and row and all(isinstance(one, dict) for one in row):
        raise ValueError("a list of objects on one line; write each on a line of its own")
    if not isinstance(row, dict) and not (texts and isinstance(row, list) and all(isinstance(one, str) for one in row)):
        raise ValueError(f"expected a JSON object on each line, got {line.strip()[:40].decode(errors='replace')!r}")
    return row


def occurs_twice(column: str, line: bytes) -> bool:
    """Return whether the object of a line has a key twice; orjson would take the last.

    The quotes of a key inside a text are escaped, so few lines have the key in quotes twice, or a key with an escape,
    and are parsed again.
    """
    if line.count(json.dumps(column, ensure_ascii=False).encode()) < 2 and not ESCAPED_KEY.search(line):
        return False
    names: list[str] = []

    def note(pairs: list[tuple[str, object]]) -> None:
        names[:] = [name for name, _ in pairs]  # the outermost object is the last

    _lenient(line, note)
    return names.count(column) > 1


def _lenient(line: bytes, object_pairs_hook: Callable | None = None) -> object:
    """Parse JSON with the standard library, which accepts NaN and integers of over 64 bits, unlike orjson."""
    try:
        return json.loads(line.decode(), object_pairs_hook=object_pairs_hook)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start} of the line") from None
    except RecursionError:
        raise ValueError("not valid JSON: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}") from None
