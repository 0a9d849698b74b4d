"""Read folders of shards without a StreamingDataset.

A StreamingDataset would decompress shards into the folder and take shared memory and locks. Inspection must do neither:
the folder may be read-only, or a running training may be reading from it. So a shard is read into memory, checked by
its hash and decompressed there (Streaming writes 64 MB at most by default). Streaming's own reader decodes its rows.
Columns that would be unpickled are refused, because a shard must not be able to run code.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from streaming.base.compression import decompress
from streaming.base.format import FileInfo

from rotary_foundry.data.damage import damage_of
from rotary_foundry.data.shard_index import ShardIndex
from rotary_foundry.data.shard_reader import ShardReader, shard_readers
from rotary_foundry.data_prep.inspection.source_folders import INDEX, Folder
from rotary_foundry.utils.errors import DataError
from rotary_foundry.utils.wording import one_line

COLUMNS = {"tokens": None, "lengths": None, "documents": np.empty(0, np.uint32)}  # with defaults of optional columns


@dataclass(frozen=True)
class Shard:
    """A shard, as listed in the index."""

    reader: ShardReader
    first_row: int  # number in the folder of its first row

    @property
    def name(self) -> str:
        return self.stored.basename

    @property
    def stored(self) -> FileInfo:
        """The entry of the shard's file as it was written, compressed or not."""
        return self.reader.zip_data or self.reader.raw_data

    @property
    def part(self) -> str | None:
        """The part of the source that the shard holds; None in a corpus without parts."""
        return os.path.dirname(self.name) or None

    def rows(self, raw: bytes, start: int = 0) -> Iterator[dict]:
        """Decode the shard's samples, from number `start` on, out of the bytes of its decompressed file.

        Raises:
            ValueError: a row cannot be decoded; the message names its number in the folder.
        """
        # An MDS file begins with uint32: the number of samples, the offset of each, and the end of the last.
        ends = np.frombuffer(raw, np.uint32, self.reader.samples + 1, 4)
        for row in range(start, self.reader.samples):
            try:
                sample = self.reader.decode_sample(raw[ends[row] : ends[row + 1]])
            except Exception as error:  # damaged bytes may cause any error in numpy or Streaming
                raise ValueError(f"row {self.first_row + row} cannot be decoded: {one_line(error)}") from error
            for column, without in COLUMNS.items():
                values = sample.get(column, without)
                if not isinstance(values, np.ndarray) or values.dtype.kind not in "iu" or values.ndim != 1:
                    raise ValueError(f"row {self.first_row + row}: expected integers in the column '{column}'")
            yield sample


class ShardFolder(Folder):
    """The shards of one source, row length and split, in the order of the index.

    Args:
        path: the folder.
        remote: the address from which missing files are fetched.

    Raises:
        DataError: the index is missing or broken, names a shard outside the folder, or has a pickled column.
    """

    def __init__(self, path: str | Path, remote: str | None = None):
        super().__init__(path, remote)
        try:
            index = ShardIndex.parse(self.read(INDEX))
            readers = shard_readers(index, str(self.path))
        except DataError:
            raise
        except Exception as error:  # the file is broken, or any part of it is missing
            raise DataError(f"{path}/{INDEX}: cannot be read: {one_line(error)}") from error
        self.columns, self.shard_rows = index.columns, index.rows
        self._first_rows = self.shard_rows.cumsum() - self.shard_rows
        self.shards = [Shard(reader, int(first)) for reader, first in zip(readers, self._first_rows, strict=True)]
        self.size = int(self.shard_rows.sum())
        self._raw: tuple[Shard, bytes] | None = None  # the last shard read, and its decompressed bytes
        self._ids: tuple[str, pa.ChunkedArray] | None = None  # the last part read, and the ids of its documents

    def shard_of(self, row: int) -> Shard:
        """Return the shard that contains a row.

        Raises:
            DataError: the folder has no such row.
        """
        if not 0 <= row < self.size:
            there = f"its rows are 0 to {self.size - 1}" if self.size else "the folder has no rows"
            raise DataError(f"{self.path}: no row {row}; {there}")
        return self.shards[int(np.searchsorted(self._first_rows, row, side="right")) - 1]

    def row(self, row: int) -> dict:
        """Return the sample of a row.

        Raises:
            DataError: the folder has no such row, or its shard is damaged.
        """
        shard = self.shard_of(row)
        if self._raw is None or self._raw[0] is not shard:
            self._raw = shard, self.raw(shard)
        return next(self._decoded(shard, self._raw[1], row - shard.first_row))

    def rows(self, shard: Shard) -> Iterator[dict]:
        """Yield the samples of a shard.

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
        """Return the bytes of a shard's decompressed file, after comparing its hashes.

        Raises:
            DataError: the file is missing or damaged.
        """
        stored, raw = shard.stored, shard.reader.raw_data
        if self.remote and stored is not raw and (copy := self._copy(raw)) is not None:
            return copy
        content = self.read(stored.basename)
        where = f"{self.path}/{stored.basename}"
        if damage := damage_of(content, stored):
            raise DataError(f"{where}: {damage}")
        if stored is raw:
            return content
        try:
            content = decompress(shard.reader.compression, content)
        except Exception as error:  # each compression library raises its own errors
            raise DataError(f"{where}: cannot be decompressed: {one_line(error)}") from error
        if damage := damage_of(content, raw):
            raise DataError(f"{where}: damaged after decompression: {damage}")
        return content

    def _copy(self, raw: FileInfo) -> bytes | None:
        """Return a cached decompressed file; None if it is missing or damaged."""
        try:
            content = (self.path / raw.basename).read_bytes()
        except OSError:
            return None
        return None if damage_of(content, raw) else content

    def document_ids(self, shard: Shard, numbers: NDArray[np.integer]) -> list[str]:
        """Return the ids of documents, given their numbers in the shard's part.

        Raises:
            DataError: the part's table is missing or broken, or has too few lines.
        """
        if self._ids is None or self._ids[0] != shard.part:
            self._ids = shard.part, self.documents(shard.part, ["id"])["id"]
        ids = self._ids[1]
        try:
            return ids.take(pa.array(numbers)).to_pylist()
        except pa.ArrowIndexError:
            table = os.path.normpath(self.path / self.documents_file(shard.part))
            raise DataError(f"{table}: has {len(ids)} lines, but {shard.name} refers to line {numbers.max()}") from None
