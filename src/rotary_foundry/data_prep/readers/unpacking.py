"""Packed files as files of bytes, that tell damage from a failing disk, and give all that comes before it.

fsspec's reader of .zst stops without a word after the first of several frames, and at a cut, so it is not used.
"""

import gzip
import io
import zlib
from collections.abc import Iterator

import zstandard


class Damaged(Exception):
    """A packed file is cut off, or is not what was packed."""


class Unpacked(io.RawIOBase):
    """Chunks of bytes as a file.

    Raises (when read):
        Damaged: the chunks cannot be unpacked; all before has been given by then.
    """

    def __init__(self, chunks: Iterator[bytes]):
        self.chunks = chunks
        self.content = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        if not self.content:
            try:
                self.content = memoryview(next(self.chunks, b""))
            except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
                raise Damaged(str(error)) from error
        size = min(len(buffer), len(self.content))
        buffer[:size] = self.content[:size]
        self.content = self.content[size:]
        return size


def gzip_content(stored: io.IOBase) -> Iterator[bytes]:
    """What a gzip file holds, in pieces."""
    file = gzip.GzipFile(fileobj=stored)
    while content := file.read1(1 << 17):
        yield content


def zstandard_content(stored: io.IOBase) -> Iterator[bytes]:
    """What a file of Zstandard frames holds, in pieces."""
    frame = None  # what decompresses the present frame
    while waiting := stored.read(1 << 14):  # little at a time, for it may grow a thousandfold
        while waiting:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            if content := frame.decompress(waiting):
                yield content
            waiting = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame:
        raise EOFError("the file ends within a frame")
