"""The files of a prepared corpus: folders of shards, tables of documents, the tokenizer.

Each part of a source has its own folder inside the folder of shards. The table
`<source>/documents/<split>/<part>.parquet` lists its documents, one per line. The column `documents` of a row holds
line numbers of this table.

If a run trains from a remote, its local folder is a cache, and missing files are fetched to a temporary folder.

This module is separate from shard_folder.py because importing Streaming takes seconds, and reading the size of a corpus
does not need it.
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

from rotary_foundry.data.rows import FRAME, MANIFEST, content, fingerprint
from rotary_foundry.data.special_tokens import special_ids
from rotary_foundry.data_prep.encoding import open_tokenizer
from rotary_foundry.utils.errors import DataError, Fault
from rotary_foundry.utils.object_store import fetch
from rotary_foundry.utils.wording import one_line

INDEX = "index.json"


class Folder:
    """A folder of shards of one source, row length and split, with the corpus' files beside it.

    Args:
        path: the folder.
        remote: the address from which missing files are fetched.
    """

    def __init__(self, path: str | Path, remote: str | None = None):
        self.path = Path(os.path.abspath(path))
        self.remote = remote

    @property
    def split(self) -> str:
        return self.path.name

    @property
    def tokenizer_folder(self) -> Path:
        """The tokenizer folder of the corpus that this folder belongs to."""
        return Path(os.path.normpath(self.path / "../../../tokenizer"))

    def tables(self) -> list[str]:
        """Return the parts that have a table of documents in the local corpus."""
        tables = Path(os.path.normpath(self.path / f"../../documents/{self.split}")).glob("*.parquet")
        return sorted(table.stem for table in tables)

    def documents_file(self, part: str) -> str:
        """Return the path of a part's table of documents, relative to the folder."""
        return f"../../documents/{self.split}/{part}.parquet"

    def documents(self, part: str, columns: Sequence[str]) -> pa.Table:
        """Read columns of a part's table of documents: `id`, `bytes`, `tokens` or, for conversations, `responses`.

        Raises:
            DataError: the table is missing or broken.
        """
        name = self.documents_file(part)
        try:
            kinds = pa.schema([(column, pa.string() if column == "id" else pa.int64()) for column in columns])
            return pq.read_table(io.BytesIO(self.read(name)), columns=list(columns)).cast(kinds)
        except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: a column is missing
            raise DataError(f"{os.path.normpath(self.path / name)}: cannot be read: {one_line(error)}") from error

    def read(self, name: str) -> bytes:
        """Read a file of the folder, or one elsewhere in the corpus by a relative path out of the folder.

        Raises:
            DataError: the file is missing, or cannot be read or fetched.
        """
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
        except Fault as error:  # reported like any other problem of the corpus
            raise DataError(str(error)) from error
        return local.read_bytes()


def local_folder(directory: str | Path) -> Path:
    """Return the absolute path of a folder.

    Raises:
        DataError: the path is an object store's address.
    """
    if address := re.match(r"([a-z][a-z0-9]+):/+(.*)", str(directory)):  # a Path has one slash where there were two
        raise DataError(f"{address[1]}://{address[2]}: expected a local folder; copy it to one first")
    return Path(os.path.abspath(directory))


def find_folders(directory: str | Path) -> list[Path]:
    """Find the folders of shards in and below a directory: those with an index or a manifest.

    Raises:
        DataError: the directory does not exist or has no such folder.
    """
    directory = local_folder(directory)
    if not directory.is_dir():
        raise DataError(f"{directory}: no such folder")
    found = []
    for folder, below, files in os.walk(directory):
        below.sort()
        if INDEX in files or MANIFEST in files:
            found.append(Path(folder))
            below.clear()  # skip the folders of parts, which may have an index each
    if not found:
        raise DataError(
            f"{directory}: no shards there; give a folder that `python data_prep` wrote, or one of shards in it, "
            "such as data/nano/code/1024/train"
        )
    return found


class Texts:
    """A corpus' tokenizer, used to decode tokens to text.

    Raises:
        DataError: the folder has no tokenizer, or it cannot be read.
    """

    def __init__(self, folder: Path):
        self.fingerprint = fingerprint(folder)
        self._tokenizer = open_tokenizer(folder)
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.frame = FRAME.ids(special_ids(folder, self._tokenizer))

    def decode(self, documents: Sequence[NDArray[np.integer]], framed: bool = True) -> list[str]:
        """Decode documents, each `[tokens]`. Leave out their frame if they are `framed`; only conversations are not.

        A piece may begin inside a character.
        """
        contents = [content(document) if framed else document for document in documents]
        return self._tokenizer.decode_batch([tokens.tolist() for tokens in contents], skip_special_tokens=False)


def printable(text: str) -> str:
    """Escape the control characters of a text, so that it cannot send commands to a terminal."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode() for char in text
    )
