"""Read compressed files as byte streams. All data before an error is returned; damage raises `Damaged`, a disk OSError.

fsspec's reader of .zst is not used: it stops silently after the first of several frames, and at a truncation.
"""

import codecs
import gzip
import io
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterator

import zstandard

FIRST_LINE = re.compile(rb'(?:[^"\r\n]++|"[^"]*+")*+(\r\n|\r(?=.)|\n)', re.DOTALL)

SAMPLE = 1 << 14  # bytes from which an encoding is told
CONTROLS = bytes(byte for byte in range(32) if byte not in b"\t\r\n")
MARKS = {  # those of UTF-32 first, because one of them begins with one of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
ZEROS = {  # which of the first four bytes are not zero
    b"\1\0\0\0": "utf-32-le",
    b"\0\0\0\1": "utf-32-be",
    b"\1\0\1\0": "utf-16-le",
    b"\0\1\0\1": "utf-16-be",
}


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


def wide_encoding(start: bytes) -> str | None:
    """Return Python's name for the encoding of a file that begins so, if it is UTF-16 or UTF-32; None if it is another.

    A byte order mark says it, or zeros in the first two or four letters. Else it is UTF-16 if it is not UTF-8, or if a
    quarter of it are control characters, as in Cyrillic text; if it is sound UTF-16; and if it has enough characters
    that the bytes of other encodings do not give: those of ASCII, kana, and punctuation between Chinese characters.
    """
    for mark, name in MARKS.items():
        if start.startswith(mark):
            return name
    if name := ZEROS.get(bytes(map(bool, start[:4]))):
        return name
    start = start[:SAMPLE]
    controls = len(start) - len(start.translate(None, CONTROLS))
    if _decoded(start, "utf-8") is not None and 4 * controls < len(start):
        return None
    return next((name for name in ("utf-16-le", "utf-16-be") if _is_plausible(_decoded(start, name))), None)


def _decoded(start: bytes, encoding: str) -> str | None:
    """Return the text of a file's beginning, which may end within a character; None if it is not in the encoding."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(start)
    except UnicodeError:
        return None


def _is_plausible(text: str | None) -> bool:
    if not text:
        return False
    ascii_ = sum(" " <= char <= "~" or char in "\t\r\n" for char in text)
    kana = sum("\u3000" <= char <= "\u30ff" for char in text)
    if 10 * (ascii_ + kana) < len(text):
        return False
    if not ascii_:
        return re.fullmatch("[\u3000-\u30ff\u4e00-\u9fff\uff00-\uffef]+", text) is not None
    return all(char in "\t\r\n" or unicodedata.category(char) not in ("Cc", "Cn", "Co", "Cs") for char in text)


def ends_in_cr(start: bytes) -> bool:
    """Return whether the first line of a file that begins so ends in a CR alone; not one in quotes, as in CSV."""
    end = FIRST_LINE.match(start)
    return end is not None and end[1] == b"\r"


def any_line_end(stream: io.BufferedIOBase) -> Callable[[int], bytes]:
    """Return a `readline` of a stream that ends lines at any of CR, LF and CR LF."""
    text = io.TextIOWrapper(stream, "latin-1", newline="")

    def readline(size: int) -> bytes:
        return text.readline(size).encode("latin-1")

    return readline


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
