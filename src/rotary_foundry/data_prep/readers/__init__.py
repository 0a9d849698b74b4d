"""Readers of documents, by name. A reader lists the parts of a source and generates the documents of one part.

One task reads one part. The parts, and the order of documents in them, depend only on the source and not on the number
of workers. So the same input gives the same shards everywhere.

A source without its text column is refused at once, because all of its documents would be lost. A single document that
cannot be read is listed (`BadInput`) and skipped. datatrove's own readers only log such documents, so that a corpus
shrinks unnoticed; `files` and `warc` say which of their parts are used.

Each reader is a module of this package with `parts`, `fingerprint` and `read`. It is imported when a source needs it,
so that a configuration is checked without importing pyarrow, datasets or Streaming (and so torch).
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rotary_foundry.data_prep.readers.bad_input import BadInput
from rotary_foundry.utils.errors import DataError
from rotary_foundry.utils.installing import install_command

if TYPE_CHECKING:
    from datatrove.data import Document

PART_BYTES = 32_000_000  # stored size of a part; a larger file is a part of its own
MOST_PARTS = 1000  # for each source; very large sources have larger parts instead

Part = dict[str, Any]  # plain values only, so that it can be stored as JSON

CONVERSATIONS = {  # the columns of each form of conversations (messages.py)
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt_response": ("prompt", "response"),
}

__all__ = [
    "CONVERSATIONS",
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
    path: str | None = None  # what to read; READERS says which readers take or need a path
    text_column: str | None = None  # the column of the text, in files with columns; default: "text"
    delimiter: str | None = None  # between the columns of csv; default: a comma, or in .tsv files a tab, without quotes
    encoding: str | None = None  # of csv, jsonl and text, as Python names it, such as latin-1 or utf-16; default: utf-8
    name: str | None = None  # the configuration of a Hugging Face data set
    split: str | None = None  # the split of a Hugging Face data set; default: "train"
    separator: str | None = None  # a regular expression that divides a document into several
    remove: str | None = None  # a regular expression whose matches are removed from documents
    depth: int | None = None  # of repositories: levels of folders from `path` down to a repository; default: 1
    endings: list[str] | None = None  # of repositories: the files to read; default: READERS says which
    install: str | None = None  # the command that provides `path`, for the error if nothing is there
    length_bands: list[int] | None = None  # in tokens; makes a source of each band of lengths (length_bands.py)
    conversations: str | None = None  # a form of CONVERSATIONS: documents are conversations for instruction tuning
    alone_from: int | None = None  # in tokens; a conversation of at least this length gets a row to itself
    too_long: str | None = None  # of conversations that no row can hold: leave_out (the default) or cut_left
    filters: list[Any] = field(default_factory=list)  # datatrove's by name, with or without arguments; see `filters.py`


@dataclass(frozen=True)
class Reader:
    """The options that a reader takes, and the module of its code."""

    module: str  # a module of this package
    path: str  # "required", "optional" or "none"
    text_column: bool = False
    encoding: bool = False
    hugging_face: bool = False  # takes `name` and `split`, and its path may be a name on the Hub
    repositories: bool = False  # takes `depth` and `endings`
    conversations: bool = False  # takes `conversations`, and with it `alone_from` and `too_long`
    extensions: tuple[str, ...] = ()  # the files to read in a folder; a path or glob to files may have any extension


def _packed(*extensions: str) -> tuple[str, ...]:
    return tuple(extension + packing for extension in extensions for packing in ("", ".gz", ".zst"))


SOURCE_ENDINGS = (
    *(".c", ".cc", ".cpp", ".cs", ".cu", ".cuh", ".go", ".h", ".hpp", ".java", ".jl"),
    *(".js", ".kt", ".lua", ".m", ".md", ".php", ".pl", ".py", ".pyi", ".pyx", ".r"),
    *(".rb", ".rs", ".rst", ".scala", ".sh", ".sql", ".swift", ".tex", ".ts", ".txt"),
)

READERS = {
    "csv": Reader("files", path="required", text_column=True, encoding=True, extensions=_packed(".csv", ".tsv")),
    "distribution_readmes": Reader("installed_packages", path="none"),
    "html": Reader("documentation", path="required", extensions=_packed(".html", ".htm")),
    "huggingface": Reader("hugging_face", path="required", text_column=True, hugging_face=True, conversations=True),
    "jsonl": Reader(
        "files",
        path="required",
        **dict.fromkeys(("text_column", "encoding", "conversations"), True),
        extensions=_packed(".jsonl", ".json"),
    ),
    "man": Reader("documentation", path="required", extensions=_packed(*(f".{section}" for section in range(1, 10)))),
    "mds": Reader("mds", path="required", text_column=True),
    "parquet": Reader("files", path="required", text_column=True, conversations=True, extensions=(".parquet",)),
    "python_docstrings": Reader("installed_packages", path="optional", extensions=(".py",)),
    "python_files": Reader("installed_packages", path="optional", extensions=(".py",)),
    "repositories": Reader("repositories", path="optional", extensions=SOURCE_ENDINGS, repositories=True),
    "text": Reader("files", path="required", encoding=True, extensions=_packed(".txt", ".md", ".rst")),
    "warc": Reader("warc", path="required", extensions=_packed(".warc", ".wet")),
}


def parts(source: SourceConfig) -> list[Part]:
    """Divide a source into parts of about PART_BYTES, one per task; parts grow if there would be more than MOST_PARTS.

    Raises:
        DataError: the source has nothing to read, or cannot be listed.
    """
    return _module(source).parts(source)


def fingerprint(source: SourceConfig) -> str:
    """Return hexadecimal digits that change when the source changes.

    They are made without reading documents, from the names, sizes and modification times of files (for files of the
    Python installation, from names and sizes).

    Raises:
        DataError: as `parts`.
    """
    return _module(source).fingerprint(source)


def read(source: SourceConfig, part: Part, bad: BadInput) -> Iterator[Document]:
    """Yield the documents of a part, in order.

    A document's id is its origin: "file:line", counted from 1, or "file:row", counted from 0. If the source has a
    `separator`, "#" and the number of the piece follow, counted from 0. Its metadata hold only `url`, if there is one.
    The text of a conversation holds its turns, as `messages.to_text` writes them.

    Raises:
        DataError: a file cannot be read or has no text column, or there are more bad documents than `bad` allows.
    """
    try:
        for document in _module(source).read(source, part, bad):
            yield from _edited(source, document)
    except ImportError as error:
        raise DataError(f"the reader {source.reader} needs {install_command('filters')}: {error}") from error


def _edited(source: SourceConfig, document: Document) -> Iterator[Document]:
    """Divide a document at the source's `separator`, and then remove what matches `remove`."""
    texts = [document.text] if source.separator is None else re.split(source.separator, document.text)
    for number, text in enumerate(texts):
        id_ = document.id if source.separator is None else f"{document.id}#{number}"
        yield replace(document, text=text if source.remove is None else re.sub(source.remove, "", text), id=id_)


def matches(path: str) -> list[str]:
    """List the paths that match the path or glob `path`, sorted. A store's address is returned without a request."""
    return [path] if "://" in path or Path(path).exists() else sorted(glob.glob(path, recursive=True))


def _module(source: SourceConfig) -> ModuleType:
    return import_module(f"{__name__}.{READERS[source.reader].module}")
