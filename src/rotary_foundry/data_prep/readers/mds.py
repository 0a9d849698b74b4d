"""Read existing MDS shards with a text column, using Streaming's own shard reader.

A shard is copied to a temporary folder, decompressed and read there. So nothing is written beside the user's shards,
and local folders and stores are handled alike. Only the needed columns are decoded. Still, a data set with any pickled
column is refused, because its author expects readers to run code from it.
"""

import json
import posixpath
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from datatrove.data import Document

from rotary_foundry.data.rows import lies_inside
from rotary_foundry.data_prep.readers import BadInput, Part, SourceConfig
from rotary_foundry.data_prep.readers.listing import digest, part_bytes
from rotary_foundry.data_prep.readers.text_columns import check_columns, not_text
from rotary_foundry.utils import object_store
from rotary_foundry.utils.errors import DataError
from rotary_foundry.utils.json_text import parse_json

if TYPE_CHECKING:
    from streaming.base.format.mds import MDSReader

SHARD = "shard.mds"


def parts(source: SourceConfig) -> list[Part]:
    """Group shards, in the order of the index, into parts of about equal size."""
    groups: list[list[int]] = []
    room = 0
    sizes = [(shard["zip_data"] or shard["raw_data"])["bytes"] for shard in _shards(source)]
    whole = part_bytes(sum(sizes))
    for number, size in enumerate(sizes):
        if size > room or not groups:
            groups.append([])
            room = whole
        groups[-1].append(number)
        room -= size
    return [{"shards": group} for group in groups]


def fingerprint(source: SourceConfig) -> str:
    """Return a fingerprint of the index only, because Streaming never changes a shard after writing it."""
    return digest(json.dumps(shard, sort_keys=True) for shard in _shards(source))


def read(source: SourceConfig, part: Part, bad: BadInput) -> Iterator[Document]:
    shards = _shards(source)
    for number in part["shards"]:
        yield from _documents(source, shards[number], bad)


def _index(source: SourceConfig) -> str:
    return source.path if source.path.endswith("index.json") else posixpath.join(source.path, "index.json")


def _check_exists(index: str) -> None:
    """Refuse a folder without an index, such as a folder of splits, and name the folders in it that have one."""
    if not object_store.exists(index):
        folder = posixpath.dirname(index) or "."
        with object_store.named(folder):
            found = sorted(object_store.data_folder(folder).glob("*/index.json"))
        splits = ", ".join(map(posixpath.dirname, found))
        advice = f"; folders in {folder} that have one are {splits}: give the path of one" if splits else ""
        raise DataError(f"{index}: no such file; a folder of MDS shards has one{advice}")


def _shards(source: SourceConfig) -> list[dict]:
    """Return the shards in the index.

    Raises:
        DataError: the index is missing or empty, or it does not list MDS shards with a text column.
    """
    from streaming.base.format.mds import MDSReader  # imports torch

    index = _index(source)
    _check_exists(index)
    column = source.text_column or "text"
    try:
        shards = parse_json(object_store.read_text(index))["shards"]
        for shard in shards:
            reader = MDSReader.from_json("", None, shard)
            infos = [info for info in (reader.raw_data, reader.zip_data) if info]
            sizes, names = [info.bytes for info in infos], [info.basename for info in infos]
            if not all(isinstance(size, int) for size in [*sizes, reader.samples]) or not all(map(lies_inside, names)):
                raise ValueError("sizes that are not numbers, or file names outside the folder")
            if any(size < 0 for size in [*sizes, reader.samples]):
                raise ValueError(f"expected sizes of at least 0, got samples={reader.samples} and bytes={sizes}")
            if reader.raw_data is None or not all(isinstance(info.hashes, dict) for info in infos):
                raise ValueError("no file, or hashes without algorithms")
            columns = zip(reader.column_names, reader.column_encodings, reader.column_sizes, strict=True)
            encodings = {name: encoding for name, encoding, _ in columns}
            check_columns([column], reader.column_names, index)
            if encodings[column] != "str":
                raise DataError(f"{index}: column '{column}': expected encoding 'str', got {encodings[column]!r}")
            if unsafe := [name for name, encoding in encodings.items() if encoding == "pkl"]:
                raise DataError(f"{index}: column '{unsafe[0]}' is pickled, and reading a pickle can run any code")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{index}: not an index of MDS shards: {error!r}") from error
    if not any(shard["samples"] for shard in shards):  # a filter may leave such a data set (mosaicml/streaming#242)
        raise DataError(f"{index}: no samples there; expected at least one; leave the source out, or give another path")
    return shards


def _documents(source: SourceConfig, shard: dict, bad: BadInput) -> Iterator[Document]:
    from streaming.base.format.mds import MDSReader

    folder = posixpath.dirname(_index(source))
    path = posixpath.join(folder, (shard["zip_data"] or shard["raw_data"])["basename"])
    wanted = (source.text_column or "text", "url")
    with TemporaryDirectory(prefix="mds-") as temporary:
        reader = MDSReader.from_json(temporary, None, shard)
        try:
            content = _unpacked(path, reader)
        except ValueError as error:
            bad.add(path, f"damaged: {error}; the whole shard, {reader.samples} rows, is lost", reader.samples)
            return
        there = int.from_bytes(content[:4], "little")
        if there != reader.samples:
            raise DataError(
                f"{path}: holds {there:_} samples, and {_index(source)} lists {reader.samples:_}; correct the "
                "index, or restore the shard"
            )
        Path(temporary, SHARD).write_bytes(content)
        reader.raw_data.basename = SHARD
        names, encodings = reader.column_names, reader.column_encodings
        reader.column_encodings = [
            encoding if name in wanted and encoding == "str" else "bytes"
            for name, encoding in zip(names, encodings, strict=True)
        ]
        for row in range(reader.samples):
            where = f"{path}:{row}"
            try:
                sample = reader.get_item(row)
            except (IndexError, OverflowError, TypeError, ValueError) as error:
                bad.add(where, f"damaged: {error}")
                continue
            text = sample[wanted[0]]
            if problem := not_text(text):
                bad.add(where, f"column '{wanted[0]}' {problem}")
            else:
                url = sample.get("url")
                yield Document(text, where, metadata={} if not_text(url) else {"url": url})


def _unpacked(path: str, reader: "MDSReader") -> bytes:
    """Return the decompressed content of a shard.

    Raises:
        DataError: the shard cannot be read or fetched.
        ValueError: its content differs from what was written.
    """
    from streaming.base.compression import decompress
    from streaming.base.hashing import get_hash

    with object_store.named(path):
        content = object_store.filesystem(path).cat_file(path)
    for info, stored in ((reader.zip_data, True), (reader.raw_data, False)):
        if info is None:
            continue
        if not stored and reader.zip_data:
            try:
                content = decompress(reader.compression, content)
            except Exception as error:  # each compression raises its own errors
                raise ValueError(f"{reader.compression}: {error}") from error
        if len(content) != info.bytes:
            raise ValueError(f"expected {info.bytes:_} bytes, got {len(content):_}")
        for algorithm, hashed in info.hashes.items():
            if get_hash(algorithm, content) != hashed:
                raise ValueError(f"its {algorithm} hash differs from the one in the index")
    return content
