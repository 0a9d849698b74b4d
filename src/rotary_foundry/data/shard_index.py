"""Read an index.json into arrays of about 150 bytes per shard; entries parsed from JSON would take 3 kB each.

This module imports only numpy, xxhash and the standard library, as rows.py does.
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
    """Switch off garbage collection while many objects are made; it would take longer than making them."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


class Files:
    """The files of an index's shards in one of their two forms, decompressed or compressed.

    Args:
        listed: the index's entry for each file; None where a shard has no such file.

    Raises:
        KeyError, TypeError: an entry lacks a key or has a value of a wrong type.
        ValueError: a file lies outside of the index's folder.
    """

    def __init__(self, listed: list[dict | None]):
        there = [info or {"basename": "", "bytes": 0, "hashes": {}} for info in listed]
        names = [info["basename"] for info in there]
        joined = "\n".join(["", *names])
        suspects = names if ".." in joined or "\n/" in joined else []  # checking every name is slow
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
        """Return the index's entry for a shard's file; None if there is none."""
        if not (name := self.names[shard].decode()):
            return None
        digest = self.hashes[shard].decode()
        return {"basename": name, "bytes": int(self.bytes[shard]), "hashes": {SHARD_HASH: digest} if digest else {}}


@dataclass(frozen=True)
class ShardIndex:
    """The entries of an index as arrays, one element per shard, in the index's order."""

    rows: NDArray[np.int64]  # [shards]
    raw: Files
    zip: Files  # with an empty name where a shard is not compressed
    formats: list[dict]  # the other keys of the entries, such as columns and compression, each combination once
    format_of: NDArray[np.uint16]  # [shards]: the index in `formats` of each shard's

    @classmethod
    def parse(cls, content: str | bytes) -> "ShardIndex":
        """Read the content of an index.json.

        Raises:
            Exception: of several classes, if it is broken or lists a file outside of its folder.
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
        """A digest of all rows in their order, independent of their compression."""
        raw = self.raw
        return xxh3_64_hexdigest(b"".join(part.tobytes() for part in (self.rows, raw.bytes, raw.hashes, raw.names)))

    def entry(self, shard: int) -> dict:
        """Return a shard's entry of the index."""
        files = {"raw_data": self.raw.entry(shard), "zip_data": self.zip.entry(shard)}
        return self.formats[self.format_of[shard]] | files | {"samples": int(self.rows[shard])}


def read_index(path: str | Path) -> ShardIndex:
    """Read an index.json; return the earlier result if the same file was read before.

    Raises:
        Exception: as `ShardIndex.parse`.
    """
    status = os.stat(path)
    return _read(str(path), status.st_ino, status.st_mtime_ns, status.st_size)


@lru_cache(64)
def _read(path: str, *_which_file: int) -> ShardIndex:
    return ShardIndex.parse(Path(path).read_bytes())
