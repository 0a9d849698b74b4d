"""An index.json, read into arrays: some 150 bytes a shard, where its entries as JSON take 3 kB.

Light on purpose (numpy and the standard library), as rows.py is.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_hexdigest

from rotary_foundry.data.rows import SHARD_HASH, lies_inside
from rotary_foundry.utils.json_text import parse_json


@contextmanager
def uncollected() -> Iterator[None]:
    """Make many objects without a look for garbage among them after every few, which takes longer than to make them."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


class Files:
    """The files of the shards of an index, in one of their two forms.

    Args:
        listed: what the index says of each; None where a shard has none.

    Raises:
        KeyError, TypeError: it does not say what it has to.
        ValueError: a file lies outside of the index's folder.
    """

    def __init__(self, listed: list[dict | None]):
        there = [info or {"basename": "", "bytes": 0, "hashes": {}} for info in listed]
        names = [info["basename"] for info in there]
        joined = "\n".join(["", *names])
        suspects = names if ".." in joined or "\n/" in joined else []  # to look at each name takes long
        if outside := [name for name in suspects if not lies_inside(name)]:
            raise ValueError(f"names a shard outside of its folder, {outside[0]!r}")
        self.names = np.array([name.encode() for name in names], np.bytes_)
        self.bytes = np.array([info["bytes"] for info in there], np.int64)
        self.hashes = np.array([info["hashes"].get(SHARD_HASH, "").encode() for info in there], np.bytes_)

    @property
    def unhashed(self) -> bool:
        """True if the index lacks the hash of at least one file."""
        return bool(((self.names != b"") & (self.hashes == b"")).any())

    def entry(self, shard: int) -> dict | None:
        """Return what the index says of a shard's file; None if there is none."""
        if not (name := self.names[shard].decode()):
            return None
        digest = self.hashes[shard].decode()
        return {"basename": name, "bytes": int(self.bytes[shard]), "hashes": {SHARD_HASH: digest} if digest else {}}


@dataclass(frozen=True)
class ShardIndex:
    """The entries of an index as arrays, one element a shard, in the index's order."""

    rows: NDArray[np.int64]  # [shards]
    raw: Files
    zip: Files  # without a name where a shard is not compressed
    formats: list[dict]  # what else an entry says, such as columns and compression
    format_of: NDArray[np.uint16]  # [shards]: which of these is each shard's

    @classmethod
    def parse(cls, content: str | bytes) -> "ShardIndex":
        """Read the content of an index.json.

        Raises:
            Exception: of many kinds, if it is broken or lists a file outside of its folder.
        """
        with uncollected():
            entries = parse_json(content)["shards"]
            rows = np.array([entry.pop("samples") for entry in entries], np.int64)
            raw, zipped = (Files([entry.pop(key) for entry in entries]) for key in ("raw_data", "zip_data"))
            formats, number, format_of = entries[:1], 0, np.zeros(len(entries), np.uint16)
            for shard, entry in enumerate(entries):
                if entry != formats[number]:
                    if entry not in formats:
                        formats.append(entry)
                    number = formats.index(entry)
                format_of[shard] = number
        if (raw.names == b"").any():
            raise ValueError("lists a shard without a file")
        for entry in formats:
            if not all(isinstance(column, str) for column in entry["column_names"]):
                raise TypeError(f"column_names: expected names, got {entry['column_names']!r:.60}")
        return cls(rows, raw, zipped, formats, format_of)

    @property
    def columns(self) -> set[str]:
        """The columns that every shard has."""
        return set.intersection(*(set(one["column_names"]) for one in self.formats)) if self.formats else set()

    @property
    def digest(self) -> str:
        """Of all rows in their order, however they are compressed."""
        raw = self.raw
        return xxh3_64_hexdigest(b"".join(part.tobytes() for part in (self.rows, raw.bytes, raw.hashes, raw.names)))

    def entry(self, shard: int) -> dict:
        """Return a shard's entry of the index."""
        files = {"raw_data": self.raw.entry(shard), "zip_data": self.zip.entry(shard)}
        return self.formats[self.format_of[shard]] | files | {"samples": int(self.rows[shard])}


def read_index(path: str | Path) -> ShardIndex:
    """Read an index.json, or return what was read of this file before.

    Raises:
        Exception: as `ShardIndex.parse`.
    """
    status = os.stat(path)
    return _read(str(path), status.st_ino, status.st_mtime_ns, status.st_size)


@lru_cache(64)
def _read(path: str, *_which_file: int) -> ShardIndex:
    return ShardIndex.parse(Path(path).read_bytes())
