"""Folders of shards, read without a StreamingDataset.

A data set would decompress shards into the folder, and take shared memory and locks. What only looks may do neither:
the folder may be read-only, or a live run may be reading from it. So a shard is read whole, checked by its hash,
decompressed in memory (Streaming writes 64 MB at most by default), and its rows are decoded by Streaming's own reader.
Columns that would be unpickled are refused: a shard must not be able to run code.

Where a run trains from a remote, its folder is a cache, and what is not in it is fetched to a temporary place.

A part of a source has a folder of its own in the folder of shards, and its documents are listed, a line each, in
`<source>/documents/<split>/<part>.parquet`; the rows' column `documents` has numbers of these lines.
"""

import io
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from streaming.base.compression import decompress
from streaming.base.format import FileInfo, reader_from_json
from streaming.base.format.mds import MDSReader
from streaming.base.hashing import get_hash
from tokenizers import Tokenizer

from encoder_foundry.data.rows import MANIFEST, SHARD_HASH, fingerprint
from encoder_foundry.errors import DataError

INDEX = "index.json"
SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Shard:
    """A shard as the index lists it."""

    reader: MDSReader
    first_row: int  # of the folder's rows

    @property
    def name(self) -> str:
        return self.stored.basename

    @property
    def stored(self) -> FileInfo:
        """The file that it was written as."""
        return self.reader.zip_data or self.reader.raw_data

    @property
    def part(self) -> str | None:
        """The part of the source that it holds; None in a corpus without parts."""
        return os.path.dirname(self.name) or None

    def rows(self, raw: bytes, start: int = 0) -> Iterator[dict]:
        """Its samples from the `start`th on, out of its decompressed file.

        Raises:
            ValueError: naming the first row, of the folder's, that cannot be decoded.
        """
        # an MDS file: its number of samples, where each begins, and where the last one ends, as uint32; then the rest
        ends = np.frombuffer(raw, np.uint32, self.reader.samples + 1, 4)
        for row in range(start, self.reader.samples):
            try:
                sample = self.reader.decode_sample(raw[ends[row] : ends[row + 1]])
            except Exception as error:  # numpy's and Streaming's own, whatever the bytes lead to
                raise ValueError(
                    f"row {self.first_row + row} cannot be decoded: {' '.join(str(error).split())}"
                ) from error
            yield sample


class ShardFolder:
    """The shards of one source, row length and split, in the order of the index.

    Args:
        path: the folder.
        remote: where what is not in the folder is fetched from.

    Raises:
        DataError: its index is missing or broken, or has a column that would be unpickled.
    """

    def __init__(self, path: str | Path, remote: str | None = None):
        self.path = Path(os.path.abspath(path))
        self.remote = remote
        try:
            content = json.loads(self._read(INDEX))
            readers = [reader_from_json(str(self.path), None, entry) for entry in content["shards"]]
            for reader in readers:
                reader.validate(allow_unsafe_types=False)
        except DataError:
            raise
        except Exception as error:  # a broken file, any part of it missing
            raise DataError(f"{path}/{INDEX}: cannot be read: {' '.join(str(error).split())}") from error
        self.shard_rows = np.array([reader.samples for reader in readers], np.int64)
        self._first_rows = self.shard_rows.cumsum() - self.shard_rows
        self.shards = [Shard(reader, int(first)) for reader, first in zip(readers, self._first_rows, strict=True)]
        self.size = int(self.shard_rows.sum())
        self._raw: tuple[Shard, bytes] | None = None  # the shard of which a row was asked for last
        self._ids: tuple[str, pa.ChunkedArray] | None = None  # the part that was asked for last, and its documents' ids

    @property
    def split(self) -> str:
        return self.path.name

    @property
    def tokenizer_folder(self) -> Path:
        """Where the corpus that the folder belongs to has its tokenizer."""
        return self.path.parents[2] / "tokenizer"

    def shard_of(self, row: int) -> Shard:
        """The shard that a row lies in.

        Raises:
            DataError: there is no such row.
        """
        if not 0 <= row < self.size:
            there = f"its rows are 0 to {self.size - 1}" if self.size else "it has none"
            raise DataError(f"{self.path}: no row {row}; {there}")
        return self.shards[int(np.searchsorted(self._first_rows, row, side="right")) - 1]

    def row(self, row: int) -> dict:
        """The sample of a row.

        Raises:
            DataError: there is no such row, or its shard is damaged.
        """
        shard = self.shard_of(row)
        if self._raw is None or self._raw[0] is not shard:
            self._raw = shard, self.raw(shard)
        return next(self._decoded(shard, self._raw[1], row - shard.first_row))

    def rows(self, shard: Shard) -> Iterator[dict]:
        """The samples of a shard.

        Raises:
            DataError: the shard is missing or damaged.
        """
        yield from self._decoded(shard, self.raw(shard))

    def _decoded(self, shard: Shard, raw: bytes, start: int = 0) -> Iterator[dict]:
        try:
            yield from shard.rows(raw, start)
        except ValueError as error:
            raise DataError(f"{self.path}/{shard.name}: {error}") from error

    def raw(self, shard: Shard) -> bytes:
        """A shard's decompressed file, its hashes compared.

        Raises:
            DataError: it is missing or damaged.
        """
        info, is_compressed = shard.stored, shard.reader.zip_data is not None
        raw_info = shard.reader.raw_data
        if self.remote and is_compressed and (self.path / raw_info.basename).exists():
            info, is_compressed = raw_info, False  # a cache keeps what it has decompressed only
        content = self._read(info.basename)
        where = f"{self.path}/{info.basename}"
        if damage := damage_of(content, info):
            raise DataError(f"{where}: {damage}")
        if not is_compressed:
            return content
        try:
            content = decompress(shard.reader.compression, content)
        except Exception as error:  # each compression has errors of its own
            raise DataError(f"{where}: cannot be decompressed: {' '.join(str(error).split())}") from error
        if damage := damage_of(content, raw_info):
            raise DataError(f"{where}: decompressed, it is not what was written: {damage}")
        return content

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
            return pq.read_table(io.BytesIO(self._read(name)), columns=list(columns))
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{os.path.normpath(self.path / name)}: cannot be read: {' '.join(str(error).split())}"
            ) from error

    def document_ids(self, shard: Shard, numbers: NDArray[np.integer]) -> list[str]:
        """The ids of documents of a shard's part, by their numbers.

        Raises:
            DataError: the part's table is missing or broken, or has no such line.
        """
        if self._ids is None or self._ids[0] != shard.part:
            self._ids = shard.part, self.documents(shard.part, ["id"])["id"]
        ids = self._ids[1]
        try:
            return ids.take(pa.array(numbers)).to_pylist()
        except pa.ArrowIndexError:
            table = os.path.normpath(self.path / self.documents_file(shard.part))
            raise DataError(f"{table}: has {len(ids)} lines, and {shard.name} refers to line {numbers.max()}") from None

    def _read(self, name: str) -> bytes:
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
    from streaming.base.storage.download import CloudDownloader  # slow to import, and seldom needed

    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder, "file")
        try:
            CloudDownloader.direct_download(remote, str(local))
            return local.read_bytes()
        except Exception as error:  # each store has errors of its own
            raise DataError(f"{remote}: cannot be fetched: {' '.join(str(error).split())}") from error


def damage_of(content: bytes, info: FileInfo) -> str | None:
    """What is wrong with a file's content, if anything."""
    if len(content) < info.bytes:
        return f"truncated: {len(content):_} bytes are there, and {info.bytes:_} were written"
    if len(content) > info.bytes:
        return f"damaged: {len(content):_} bytes are there, and {info.bytes:_} were written"
    if SHARD_HASH not in info.hashes:
        return f"cannot be checked: the index has no {SHARD_HASH} hash for it"
    if get_hash(SHARD_HASH, content) != info.hashes[SHARD_HASH]:
        return f"damaged: its content does not have the {SHARD_HASH} hash of what was written"
    return None


def find_folders(directory: str | Path) -> list[Path]:
    """The folders of shards in and below a directory: those with an index or a manifest.

    Raises:
        DataError: there is none.
    """
    directory = Path(os.path.abspath(directory))
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
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the tokenizers library raises nothing narrower
            raise DataError(f"{folder}/tokenizer.json: cannot be read as a tokenizer: {error}") from error
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.first_and_last = tuple(self._tokenizer.encode("").ids)  # [CLS] and [SEP], however they are spelled

    def decode(self, documents: Sequence[NDArray[np.integer]]) -> list[str]:
        """The texts of documents with their [CLS] and [SEP], each `[tokens]`. A piece may begin within a character."""
        return self._tokenizer.decode_batch(
            [document[1:-1].tolist() for document in documents], skip_special_tokens=False
        )


def printable(text: str) -> str:
    """A text whose control characters are spelled, so that it cannot command a terminal."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode() for char in text
    )
