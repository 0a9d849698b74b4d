"""Write the files of a run so that a killed process leaves none torn, and read their lines."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rotary_foundry.runs.record_values import line_complaint
from rotary_foundry.utils.errors import DataError
from rotary_foundry.utils.json_text import parse_json
from rotary_foundry.utils.wording import one_line


def write_whole(path: Path, text: str) -> None:
    """Write a file atomically."""
    writing = path.parent.parent / f".{path.parent.name}.{path.name}"
    with _named(path):
        writing.write_text(text, encoding="utf-8")
        writing.replace(path)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the file in an error of writing to it, as on a full disk; Python names it only in an error of opening."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def open_lines(path: Path) -> BinaryIO:
    """Open a `.jsonl` file to append lines; an unfinished last line, which a killed process may leave, is removed."""
    file = open(path, "ab+")  # noqa: SIM115 (returned open; the caller closes it)
    end = file.seek(0, 2)
    if end:
        file.seek(end - 1)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
    return file


def write_line(file: BinaryIO, line: dict) -> None:
    """Append a line to a file of `open_lines`, and flush it, so that readers see it."""
    with _named(Path(file.name)):
        file.write(json.dumps(line).encode() + b"\n")
        file.flush()


def append_line(path: Path, line: dict, durable: bool = False) -> None:
    """Append a line to a `.jsonl` file.

    A `durable` line is on the disk when this returns, even if the machine fails.
    """
    with _named(path), open_lines(path) as file:
        write_line(file, line)
        if durable:
            os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict]:
    """Return the lines of `each_line`."""
    return list(each_line(path))


def each_line(path: Path, needed: Iterable[str] = (), problems: list[str] | None = None) -> Iterator[dict]:
    """Yield the lines of a `.jsonl` file; none if it does not exist. An unfinished last line is ignored.

    Args:
        needed: keys that a line must have, besides those that every line of the file has.
        problems: given to go on after damaged lines, which are left out; gets a sentence about the first of them.

    Raises:
        DataError: a line is damaged, and no `problems` are given; names the file and the line.
    """
    if not path.exists():
        return
    damaged, first = 0, ""
    with open(path, "rb") as file:
        for number, text in enumerate(file, 1):
            if not text.endswith(b"\n"):
                break
            line, wrong = {}, None
            try:
                line = parse_json(text)
            except ValueError as error:
                wrong = f"expected JSON, found {one_line(error)}"
            wrong = wrong or line_complaint(path.name, line, needed)
            if wrong is None:
                yield line
                continue
            damaged, first = damaged + 1, first or f"{path}, line {number}: {wrong}; remove the line"
            if problems is None:
                raise DataError(first)
    if problems is not None and damaged:
        problems.append(first + (f" (and {damaged - 1} more)" if damaged > 1 else ""))
