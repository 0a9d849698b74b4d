"""Existing MDS shards with a column of text, by Streaming's own reader of a shard.

A shard is brought into a temporary folder, decompressed, and read there: nothing is written beside the user's shards,
and local folders and stores are one case. Columns that are not needed are not decoded. A data set with a pickled column
is refused all the same, for whoever made it expects whoever reads it to run code from it.
"""

import json
import posixpath
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from datatrove.data import Document

from rotary_foundry.data.rows import lies_inside
from rotary_foundry.data_prep.readers import BadInput, Part, SourceConfig
from rotary_foundry.data_prep.readers.listing import digest, part_bytes
from rotary_foundry.data_prep.readers.text_columns import check_column, not_text
from rotary_foundry.utils import object_store
from rotary_foundry.utils.errors import DataError

SHARD = "shard.mds"


def parts(source: SourceConfig) -> list[Part]:
    """Shards in the order of the index, as many in a part as have its size together."""
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
    """Of the index alone: Streaming never changes a shard that it has written."""
    return digest(json.dumps(shard, sort_keys=True) for shard in _shards(source))


def read(source: SourceConfig, part: Part, bad: BadInput) -> Iterator[Document]:
    shards = _shards(source)
    for number in part["shards"]:
        yield from _documents(source, shards[number], bad)


def _index(source: SourceConfig) -> str:
    return source.path if source.path.endswith("index.json") else posixpath.join(source.path, "index.json")


def _shards(source: SourceConfig) -> list[dict]:
    """The index's shards.

    Raises:
        DataError: no index, or one of other shards than MDS with a text column.
    """
    from streaming.base.format.mds import MDSReader  # brings torch with it

    index = _index(source)
    column = source.text_column or "text"
    try:
        shards = json.loads(object_store.read_text(index))["shards"]
        for shard in shards:
            reader = MDSReader.from_json("", None, shard)
            sizes = [info.bytes for info in (reader.raw_data, reader.zip_data) if info]
            names = [info.basename for info in (reader.raw_data, reader.zip_data) if info]
            if not all(isinstance(size, int) for size in [*sizes, reader.samples]) or not all(map(lies_inside, names)):
                raise ValueError("sizes that are no numbers, or names outside of the folder")
            encodings = dict(zip(reader.column_names, reader.column_encodings, strict=True))
            check_column(column, encodings, index)
            if encodings[column] != "str":
                raise DataError(f"{index}: column '{column}' is of {encodings[column]!r}, and 'str' is wanted")
            if unsafe := [name for name, encoding in encodings.items() if encoding == "pkl"]:
                raise DataError(f"{index}: column '{unsafe[0]}' is pickled, and reading a pickle can run any code")
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise DataError(f"{index}: not an index of MDS shards: {error!r}") from error
    return shards


def _documents(source: SourceConfig, shard: dict, bad: BadInput) -> Iterator[Document]:
    from streaming.base.format.mds import MDSReader

    folder = posixpath.dirname(_index(source))
    path = posixpath.join(folder, (shard["zip_data"] or shard["raw_data"])["basename"])
    wanted = (source.text_column or "text", "url")
    with TemporaryDirectory(prefix="mds-") as temporary:
        reader = MDSReader.from_json(temporary, None, shard)
        try:
            Path(temporary, SHARD).write_bytes(_unpacked(path, reader))
        except ValueError as error:
            bad.add(path, f"damaged: {error}; the whole shard, {reader.samples} rows, is lost")
            return
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


def _unpacked(path: str, reader) -> bytes:
    """The content of a shard.

    Raises:
        DataError: it cannot be had.
        ValueError: it is not what was written.
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
            except Exception as error:  # each compression has errors of its own
                raise ValueError(f"{reader.compression}: {error}") from error
        if len(content) != info.bytes:
            raise ValueError(f"{len(content):_} bytes are there, and {info.bytes:_} were written")
        for algorithm, hashed in info.hashes.items():
            if get_hash(algorithm, content) != hashed:
                raise ValueError(f"its content does not have the {algorithm} hash of what was written")
    return content
