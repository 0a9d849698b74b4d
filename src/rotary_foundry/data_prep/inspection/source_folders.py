"""A prepared corpus as files: its folders of shards, its tables of documents, its tokenizer.

A part of a source has a folder of its own in the folder of shards, and its documents are listed, a line each, in
`<source>/documents/<split>/<part>.parquet`; the rows' column `documents` has numbers of these lines.

Where a run trains from a remote, its folder is a cache, and what is not in it is fetched to a temporary place.

Apart from shards.py because importing Streaming takes seconds, and the size of a corpus can be told without.
"""

import io
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rotary_foundry.data.rows import MANIFEST, Frame, content, fingerprint
from rotary_foundry.data_prep.encoding import open_tokenizer
from rotary_foundry.utils.errors import DataError, Fault
from rotary_foundry.utils.object_store import fetch
from rotary_foundry.utils.wording import one_line

INDEX = "index.json"


class Folder:
    """A folder of shards, one source, row length and split, with what the corpus has beside it.

    Args:
        path: the folder.
        remote: where what is not in the folder is fetched from.
    """

    def __init__(self, path: str | Path, remote: str | None = None):
        self.path = Path(os.path.abspath(path))
        self.remote = remote

    @property
    def split(self) -> str:
        return self.path.name

    @property
    def tokenizer_folder(self) -> Path:
        """Where the corpus that the folder belongs to has its tokenizer."""
        return Path(os.path.normpath(self.path / "../../../tokenizer"))

    def tables(self) -> list[str]:
        """The parts of which there is a table of documents here."""
        tables = Path(os.path.normpath(self.path / f"../../documents/{self.split}")).glob("*.parquet")
        return sorted(table.stem for table in tables)

    def documents_file(self, part: str) -> str:
        """The table of a part's documents, as a path from the folder."""
        return f"../../documents/{self.split}/{part}.parquet"

    def documents(self, part: str, columns: Sequence[str]) -> pa.Table:
        """Some of the columns `id`, `bytes` and `tokens` of a part's documents, a line each.

        Raises:
            DataError: the table is missing or broken.
        """
        name = self.documents_file(part)
        try:
            return pq.read_table(io.BytesIO(self.read(name)), columns=list(columns))
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{os.path.normpath(self.path / name)}: cannot be read: {one_line(error)}") from error

    def read(self, name: str) -> bytes:
        """A file of the folder, or, with a path that leads out of it, of the corpus."""
        path = Path(os.path.normpath(self.path / name))
        try:
            return path.read_bytes()
        except FileNotFoundError:
            if self.remote is None:
                raise DataError(f"{path}: no such file") from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error}") from error
        scheme, separator, place = self.remote.rpartition("://")
        return _fetched(scheme + separator + os.path.normpath(f"{place}/{name}"))


def _fetched(remote: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder, "file")
        try:
            fetch(remote, local)
        except Fault as error:  # here it is one more thing that is wrong with a corpus
            raise DataError(str(error)) from error
        return local.read_bytes()


def local_folder(directory: str | Path) -> Path:
    """The absolute path of a folder.

    Raises:
        DataError: it is a store's address.
    """
    if address := re.match(r"([a-z][a-z0-9]+):/+(.*)", str(directory)):  # a Path has one slash where there were two
        raise DataError(f"{address[1]}://{address[2]}: only local folders are read here; copy it to one first")
    return Path(os.path.abspath(directory))


def find_folders(directory: str | Path) -> list[Path]:
    """The folders of shards in and below a directory: those with an index or a manifest.

    Raises:
        DataError: there is none.
    """
    directory = local_folder(directory)
    if not directory.is_dir():
        raise DataError(f"{directory}: no such folder")
    found = []
    for folder, below, files in os.walk(directory):
        below.sort()
        if INDEX in files or MANIFEST in files:
            found.append(Path(folder))
            below.clear()  # the folders of parts, which may have an index each
    if not found:
        raise DataError(
            f"{directory}: no shards there; give a folder that `python data_prep` wrote, or one of shards in it, "
            "such as data/nano/code/1024/train"
        )
    return found


class Texts:
    """A corpus' tokenizer, for what was tokenised to be read.

    Raises:
        DataError: there is none in the folder, or it cannot be read.
    """

    def __init__(self, folder: Path):
        self.fingerprint = fingerprint(folder)
        self._tokenizer = open_tokenizer(folder)
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.frame = Frame.of(self._tokenizer)

    def decode(self, documents: Sequence[NDArray[np.integer]]) -> list[str]:
        """The texts of documents in their frames, each `[tokens]`. A piece may begin within a character."""
        return self._tokenizer.decode_batch(
            [content(document).tolist() for document in documents], skip_special_tokens=False
        )


def printable(text: str) -> str:
    """A text whose control characters are spelled, so that it cannot command a terminal."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode() for char in text
    )
