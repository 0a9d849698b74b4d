"""Where documents come from: readers by name, each a fixed list of parts and a generator of documents for a part.

A part is what one task reads. Parts depend on the source alone, never on how many workers there are, and so does the
order of documents in them: the same input gives the same shards everywhere.

A source whose text column is missing is refused at once, for then all of it would be lost. A single document that
cannot be read is listed (`BadInput`) and passed over. datatrove's own readers log such documents and go on, so that a
corpus shrinks without anyone being told; `files` says what is taken from them.

Each reader is a module here with `parts`, `fingerprint` and `read`, imported when a source of it is met: a
configuration is checked without pyarrow, datasets or Streaming (and so torch) being imported.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rotary_foundry.data_prep.readers.bad_input import BadInput
from rotary_foundry.utils.errors import DataError

if TYPE_CHECKING:
    from datatrove.data import Document

PART_BYTES = 32_000_000  # of stored size; a larger file is a part of its own
MOST_PARTS = 1000  # of a source: a larger one has larger parts

Part = dict[str, Any]  # plain values only, so that it can be stored as JSON

__all__ = [
    "MOST_PARTS",
    "PART_BYTES",
    "READERS",
    "BadInput",
    "Part",
    "Reader",
    "SourceConfig",
    "fingerprint",
    "matches",
    "parts",
    "read",
]


@dataclass
class SourceConfig:
    """A source of a corpus, as a YAML file describes it."""

    reader: str  # a key of READERS
    path: str | None = None  # what to read; which readers take or need one is in READERS
    text_column: str | None = None  # the column that holds the text, in files that have columns; "text" if not given
    name: str | None = None  # of a Hugging Face data set with several configurations
    split: str | None = None  # of a Hugging Face data set; "train" if not given
    filters: list[Any] = field(default_factory=list)  # datatrove's by name, with or without arguments; see `filters.py`


@dataclass(frozen=True)
class Reader:
    """What a reader is asked with, and where its code is."""

    module: str  # of this package
    path: str  # "required", "optional" or "none"
    text_column: bool = False
    hugging_face: bool = False  # takes `name` and `split`, and its path may be a name on the Hub
    extensions: tuple[str, ...] = ()  # of the files that are read in a folder; a file or a glob may have any


def _packed(*extensions: str) -> tuple[str, ...]:
    return tuple(extension + packing for extension in extensions for packing in ("", ".gz", ".zst"))


READERS = {
    "csv": Reader("files", path="required", text_column=True, extensions=_packed(".csv")),
    "distribution_readmes": Reader("installed_packages", path="none"),
    "huggingface": Reader("hugging_face", path="required", text_column=True, hugging_face=True),
    "jsonl": Reader("files", path="required", text_column=True, extensions=_packed(".jsonl", ".json")),
    "mds": Reader("mds", path="required", text_column=True),
    "parquet": Reader("files", path="required", text_column=True, extensions=(".parquet",)),
    "python_docstrings": Reader("installed_packages", path="optional", extensions=(".py",)),
    "python_files": Reader("installed_packages", path="optional", extensions=(".py",)),
    "text": Reader("files", path="required", extensions=_packed(".txt", ".md", ".rst")),
    "warc": Reader("files", path="required", extensions=_packed(".warc", ".wet")),
}


def parts(source: SourceConfig) -> list[Part]:
    """The source in parts of about PART_BYTES, or a share of MOST_PARTS of it if that is more; one task reads each.

    Raises:
        DataError: there is nothing to read, or it cannot be listed.
    """
    return _module(source).parts(source)


def fingerprint(source: SourceConfig) -> str:
    """Hexadecimal digits that change when the source does, had without reading its documents: from names, sizes and
    modification times of files (for what the installation holds, names and sizes).

    Raises:
        DataError: as `parts`.
    """
    return _module(source).fingerprint(source)


def read(source: SourceConfig, part: Part, bad: BadInput) -> Iterator[Document]:
    """The documents of a part, in order.

    A document's id is where it is from: "file:line", counted from 1, or "file:row", counted from 0. Its metadata hold
    `url`, where the source has one, and nothing else.

    Raises:
        DataError: a file that cannot be had or has no text column; more bad documents than `bad` allows.
    """
    try:
        yield from _module(source).read(source, part, bad)
    except ImportError as error:
        raise DataError(f"the reader {source.reader} needs pip install -e '.[filters]': {error}") from error


def matches(path: str) -> list[str]:
    """What the path or glob `path` stands for, sorted; empty when there is no such thing. A store is not asked."""
    return [path] if "://" in path or Path(path).exists() else sorted(glob.glob(path, recursive=True))


def _module(source: SourceConfig) -> ModuleType:
    return import_module(f"{__name__}.{READERS[source.reader].module}")
