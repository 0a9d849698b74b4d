"""Check that columns and values are text, and word the errors if they are not."""

import reprlib
from collections.abc import Iterable

import pyarrow as pa

from rotary_foundry.utils.errors import DataError

SHOWN = 20  # the number of columns that an error lists


def not_text(value: object) -> str | None:
    """Return what is wrong with a value that should be text, or None.

    A NUL is not text: it comes from binary content, or from blocks that a file system lost.
    """
    if not isinstance(value, str):
        return f"holds {'null' if value is None else reprlib.repr(value)}, which is not text"
    if "\0" in value:
        return f"holds a NUL at character {value.index(chr(0))}, which is not text"
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            return f"holds half a surrogate pair or a byte that is not UTF-8, at character {error.start}"
    return None


def twice(column: str) -> str:
    return f"the column '{column}' occurs twice; rename or remove one of the two"


def no_column(column: str, there: Iterable[str]) -> str:
    names = [repr(name) if len(name) <= 40 else f"{name[:40]!r}…" for name in map(str, there)]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"no column '{column}'; the columns there are {', '.join(names[:SHOWN])}{more}"


def check_columns(columns: Iterable[str], there: Iterable[str], where: str) -> None:
    """Check that columns exist, each once.

    Raises:
        DataError: a column does not exist, or its name occurs twice.
    """
    there = list(there)
    for column in columns:
        if column not in there:
            raise DataError(f"{where}: {no_column(column, there)}")
        if there.count(column) > 1:
            raise DataError(f"{where}: {twice(column)}")


def is_text(kind: pa.DataType) -> bool:
    """Return whether an Arrow column of this type holds text."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def check_type(kind: pa.DataType, column: str, where: str) -> None:
    """Check that a column holds text.

    Raises:
        DataError: the column has another type.
    """
    if not is_text(kind):
        raise DataError(f"{where}: column '{column}': expected text, got type {reprlib.repr(str(kind))}")


def values(column: pa.Array) -> list[str | bytes | None]:
    """Return the values of a column. In a text column, values that are not UTF-8 stay bytes.

    In a column of turns, a value with text that is not UTF-8 becomes None.
    """
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        if not is_text(column.type):
            return [_or_none(value) for value in column]
        kind = pa.large_binary()
        plain = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        return [_decoded(value) for value in plain.cast(kind).to_pylist()]


def _or_none(value: pa.Scalar) -> object:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return None


def _decoded(value: bytes | None) -> str | bytes | None:
    try:
        return value if value is None else value.decode()
    except UnicodeDecodeError:
        return value
