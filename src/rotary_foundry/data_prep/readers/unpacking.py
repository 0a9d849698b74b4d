"""Read compressed files as byte streams. All data before an error is returned; damage raises `Damaged`, a disk OSError.

fsspec's reader of .zst is not used: it stops silently after the first of several frames, and at a truncation.
"""

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterator

import zstandard

FIRST_LINE = re.compile(rb'(?:[^"\r\n]++|"[^"]*+")*+(\r\n|\r(?=.)|\n)', re.DOTALL)


class Damaged(Exception):
    """A compressed file is truncated or damaged."""


class Unpacked(io.RawIOBase):
    """A file-like object over chunks of bytes.

    Raises (when read):
        Damaged: a chunk cannot be decompressed; all data before it has been returned by then.
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
            except (EOFError, UnicodeError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
                raise Damaged(str(error)) from error
        size = min(len(buffer), len(self.content))
        buffer[:size] = self.content[:size]
        self.content = self.content[size:]
        return size


def gzip_content(stored: io.IOBase) -> Iterator[bytes]:
    """Yield the content of a gzip file in pieces."""
    file = gzip.GzipFile(fileobj=stored)
    while content := file.read1(1 << 17):
        yield content


def utf_8_content(stored: io.IOBase, encoding: str) -> Iterator[bytes]:
    """Yield the content of a file in another encoding as UTF-8; bytes that are invalid in that encoding stay as is."""
    decoder = codecs.getincrementaldecoder(encoding)("surrogateescape")
    while content := stored.read(1 << 17):
        if text := decoder.decode(content):
            yield text.encode("utf-8", "surrogateescape")
    yield decoder.decode(b"", final=True).encode("utf-8", "surrogateescape")


def is_utf_16(start: bytes) -> bool:
    """Return whether a file with these first four bytes is UTF-16: by its byte order mark, or by two-byte letters."""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return True
    even, odd = start[::2], start[1::2]
    return len(start) == 4 and ((all(even) and not any(odd)) or (all(odd) and not any(even)))


def ends_in_cr(start: bytes) -> bool:
    """Return whether the first line of a file that begins so ends in a CR alone; not one in quotes, as in CSV."""
    end = FIRST_LINE.match(start)
    return end is not None and end[1] == b"\r"


def zstandard_content(stored: io.IOBase) -> Iterator[bytes]:
    """Yield the content of a file of Zstandard frames in pieces."""
    frame = None  # the decompressor of the current frame
    while waiting := stored.read(1 << 14):  # small pieces, because one may expand a thousandfold
        while waiting:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            if content := frame.decompress(waiting):
                yield content
            waiting = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame:
        raise EOFError("the file ends within a frame")
