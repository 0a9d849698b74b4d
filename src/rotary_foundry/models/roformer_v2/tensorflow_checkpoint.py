"""Read a TensorFlow checkpoint (`NAME.index` and `NAME.data-00000-of-00001`) without TensorFlow.

The index is an uncompressed table of sorted strings, as in LevelDB. A footer points to a block of handles, and these
point to blocks of entries, whose keys share prefixes. A key is a tensor's name; its value is a BundleEntryProto: dtype,
shape, and the place in the data file (tensorflow/core/util/tensor_bundle, core/protobuf/tensor_bundle.proto). Only
whole float32 tensors in a single data file are read; bert4keras and BERT's code write no others.
"""

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rotary_foundry.utils.errors import DataError

MAGIC = bytes.fromhex("57fb808b247547db")
FOOTER = 48  # bytes: two handles, padding, the magic number
FLOAT = 1  # DT_FLOAT
VARINT, BYTES, WIDTHS = 0, 2, {1: 8, 5: 4}  # field kinds of a protocol buffer; bytes of those with a fixed width


class Entry(NamedTuple):
    """The place of a tensor's values in a checkpoint: shard, offset and size."""

    dtype: int
    shape: list[int]
    shard: int
    offset: int
    size: int  # bytes


class TensorFlowCheckpoint:
    """The tensors of a checkpoint.

    Args:
        index: the path of its `.index` file.

    Raises:
        DataError: the file is not such an index.
    """

    def __init__(self, index: Path):
        self.index = index
        try:
            self.entries = dict(_entries(index.read_bytes()))
        except (OSError, ValueError, IndexError) as error:
            raise DataError(f"{index}: cannot be read as the index of a TensorFlow checkpoint: {error}") from None

    def read(self, name: str) -> Tensor:
        """Read a tensor, float32.

        Raises:
            DataError: it has another dtype or is not in the data file.
        """
        entry, data = self.entries[name], self.index.with_suffix(".data-00000-of-00001")
        if entry.dtype != FLOAT or entry.shard or entry.size != 4 * prod(entry.shape):
            raise DataError(f"{self.index}: {name}: expected a whole float32 tensor in one data file")
        try:
            if data.stat().st_size < entry.offset + entry.size:  # checked before allocating what a damaged index lists
                raise DataError(f"{data}: ends within {name}; the file is truncated")
            with open(data, "rb") as file:
                file.seek(entry.offset)
                values = bytearray(file.read(entry.size))
        except OSError as error:
            raise DataError(f"{data}: cannot be read: {error.strerror}") from None
        return torch.frombuffer(values, dtype=torch.float32).view(entry.shape)


def _entries(table: bytes) -> Iterator[tuple[str, Entry]]:
    if len(table) < FOOTER or table[-len(MAGIC) :] != MAGIC:
        raise ValueError("its last bytes are not those of one")
    footer = table[-FOOTER:]
    _, place = _handle(footer, 0)
    handle, _ = _handle(footer, place)
    for _, value in _block(table, *handle):
        for key, entry in _block(table, *_handle(value, 0)[0]):
            if key:  # the empty key has the header
                yield key.decode(), _entry(entry)


def _block(table: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield (key, value) of a block; the byte after it says whether it is compressed."""
    if table[offset + size]:
        raise ValueError("it is compressed")
    block = table[offset : offset + size]
    end = size - 4 - 4 * int.from_bytes(block[-4:], "little")  # of the entries; restart points follow
    place, key = 0, b""
    while place < end:
        shared, place = _varint(block, place)
        own, place = _varint(block, place)
        length, place = _varint(block, place)
        key = key[:shared] + block[place : place + own]
        yield key, block[place + own : place + own + length]
        place += own + length


def _handle(data: bytes, place: int) -> tuple[tuple[int, int], int]:
    offset, place = _varint(data, place)
    size, place = _varint(data, place)
    return (offset, size), place


def _entry(message: bytes) -> Entry:
    numbers, shape = dict(_fields(message, VARINT)), dict(_fields(message, BYTES)).get(2, b"")
    sizes = [dict(_fields(dim, VARINT)).get(1, 0) for number, dim in _fields(shape, BYTES) if number == 2]
    return Entry(numbers.get(1, 0), sizes, numbers.get(3, 0), numbers.get(4, 0), numbers.get(5, 0))


def _fields(message: bytes, kind: int) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of each field of `kind` in a protocol buffer message: an int for VARINT, else bytes."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        if (found := tag & 7) == VARINT:
            value, place = _varint(message, place)
        elif found in (BYTES, *WIDTHS):
            width, place = _varint(message, place) if found == BYTES else (WIDTHS[found], place)
            value, place = message[place : place + width], place + width
        else:
            raise ValueError(f"a field of kind {found}, which no entry has")
        if found == kind:
            yield tag >> 3, value


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if value >> 63:
            raise ValueError("a number of more than 63 bits")
        if byte < 128:
            return value, place
