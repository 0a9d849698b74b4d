"""JSONL, CSV, Parquet, plain text and WARC files, packed by gzip or Zstandard or not, local or in a store.

The classes are datatrove's 0.9.0, with `read_file` overridden, because of what theirs do with bad input: JSONL's logs a
broken line and goes on, and ends a file at the first byte that is not UTF-8; CSV's fills up rows that are too short;
Parquet's and WARC's raise, and lose the file; all pass over documents without text and count rows without them. What
is used of them as it is: their handling of folders, WARC's recognition of HTML and its encoding, and the extraction of
a page's main text by Trafilatura in a process of its own.

Two settings of Trafilatura are ours. Its memory of earlier pages is off, and its time is long: with either, what is
kept of a page would depend on what else this worker has read, and on how busy the machine is.
"""

import csv
import io
import json
import logging
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.data import Document
from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.extractors.base import ExtractorSandbox
from datatrove.pipeline.readers import JsonlReader, ParquetReader, WarcReader
from datatrove.pipeline.readers.base import BaseDiskReader
from datatrove.pipeline.readers.csv import CsvReader
from datatrove.pipeline.readers.warc import process_record
from datatrove.utils.logging import logger
from obstore.exceptions import BaseError

from rotary_foundry.data_prep.readers import BadInput, Part, SourceConfig
from rotary_foundry.data_prep.readers.listing import fingerprint, parts
from rotary_foundry.data_prep.readers.text_columns import check_column, check_type, is_text, no_column, not_text, values
from rotary_foundry.data_prep.readers.unpacking import Damaged, Unpacked, gzip_content, zstandard_content
from rotary_foundry.utils import object_store

__all__ = ["fingerprint", "parts", "read"]

if TYPE_CHECKING:
    from warcio.recordloader import ArcWarcRecord

LONGEST = 1 << 28  # bytes of a document or line that are still read: more is a file of another kind
BATCH = 100  # rows of Parquet that are held at a time
EXTRACTION_SECONDS = 60.0  # for one page: only to get away from one that never ends


def read(source: SourceConfig, part: Part, bad: BadInput) -> Iterator[Document]:
    yield from read_files(FORMATS[source.reader], source, part, bad)


def read_files(reader: type["Files"], source: SourceConfig, part: Part, bad: BadInput) -> Iterator[Document]:
    """The documents of a part's files.

    Raises:
        DataError: a file cannot be had.
    """
    opened = reader(part["folder"], source.text_column or "text", bad)
    for name in part["files"]:
        with object_store.named(opened.path(name)):
            yield from opened.read_file(name)


class Files(BaseDiskReader):
    """What our readers of files have in common.

    Args:
        folder: what file names are relative to, as the user wrote it.
        column: the text column.
        bad: gets what cannot be read.
    """

    has_columns = True

    def __init__(self, folder: str, column: str, bad: BadInput):
        super().__init__(object_store.data_folder(folder), text_key=column)
        self.folder = folder
        self.what = f"column '{column}'" if self.has_columns else "the text"
        self.bad = bad

    def path(self, name: str) -> str:
        return posixpath.join(self.folder, name)

    @contextmanager
    def unpacked(self, name: str) -> Iterator[io.BufferedIOBase]:
        """A file's bytes, decompressed."""
        with self.data_folder.open(name, "rb") as stored:
            if name.endswith(".gz"):
                stored = Unpacked(gzip_content(stored))
            elif name.endswith(".zst"):
                stored = Unpacked(zstandard_content(stored))
            yield io.BufferedReader(stored, 1 << 20)

    def lines(self, name: str, stream: io.BufferedIOBase) -> Iterator[tuple[int, bytes]]:
        """(number, line) of each line that can be had."""
        number = 0
        try:
            while line := stream.readline(LONGEST + 1):
                number += 1
                if len(line) <= LONGEST:
                    yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                    continue
                self.bad.add(f"{self.path(name)}:{number}", f"a line of more than {LONGEST >> 20} MiB")
                while line and not line.endswith(b"\n"):
                    line = stream.readline(1 << 20)
        except Damaged as error:
            why = f"the file is cut off or damaged here: {error}; this line and all after it are lost"
            self.bad.add(f"{self.path(name)}:{number + 1}", why)

    def document(self, text: object, where: str, url: object = None) -> Iterator[Document]:
        """The document, or nothing if `text` is none, which is then listed."""
        if problem := not_text(text):
            self.bad.add(where, f"{self.what} {problem}")
        else:
            yield Document(text, where, metadata={} if not_text(url) else {"url": url})


class Jsonl(Files, JsonlReader):
    """A document a line; blank lines are none."""

    def read_file(self, filepath: str) -> Iterator[Document]:
        first = True
        with self.unpacked(filepath) as stream:
            for number, line in self.lines(filepath, stream):
                if not line.strip():
                    continue
                where = f"{self.path(filepath)}:{number}"
                try:
                    row = _json_object(line)
                except ValueError as error:
                    self.bad.add(where, str(error))
                    continue
                if first:
                    check_column(self.text_key, row, where)
                    first = False
                if self.text_key in row:
                    yield from self.document(row[self.text_key], where, row.get("url"))
                else:
                    self.bad.add(where, no_column(self.text_key, row))


class Csv(Files, CsvReader):
    """A document a row, after a first row with the columns' names. A row's number is that of its first line."""

    def read_file(self, filepath: str) -> Iterator[Document]:
        csv.field_size_limit(LONGEST)  # 128 KiB otherwise; a setting of the whole process
        path = self.path(filepath)
        last, ended = 0, False

        def decoded() -> Iterator[str]:
            nonlocal last, ended
            for number, line in self.lines(filepath, stream):
                last = number
                yield line.decode(errors="surrogateescape")  # which column the bad bytes are in shows later
            ended = True

        with self.unpacked(filepath) as stream:
            rows = csv.reader(decoded(), strict=True)
            columns: list[str] = []
            while True:
                where = f"{path}:{last + 1}"
                try:
                    row = next(rows)
                except StopIteration:
                    return
                except csv.Error as error:
                    lost = "; this row and all after it are lost" if ended else ""
                    self.bad.add(where, f"not valid CSV: {error}{lost}")
                    continue
                if not columns:
                    columns = row
                    check_column(self.text_key, columns or ["(a blank line)"], where)
                    urls = columns.index("url") if "url" in columns else None
                elif row and len(row) != len(columns):
                    self.bad.add(where, f"a row of {len(row)} fields, and there are {len(columns)} columns")
                elif row:
                    url = None if urls is None else row[urls]
                    yield from self.document(row[columns.index(self.text_key)], where, url)


class Parquet(Files, ParquetReader):
    """A document a row, of a column of text. Memory: a row group's compressed column, and BATCH rows."""

    def read_file(self, filepath: str) -> Iterator[Document]:
        path = self.path(filepath)
        with self.data_folder.open(filepath, "rb") as stored:
            if not stored.size:
                return
            try:
                file = pq.ParquetFile(stored)
                columns = self._columns(file.schema_arrow, path)
                groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                if _is_fault(error):
                    raise
                self.bad.add(path, f"cut off or damaged: {error}; the whole file is lost")
                return
            row = 0
            for group, rows in enumerate(groups):
                start, row = row, row + rows
                try:
                    for batch in file.iter_batches(BATCH, row_groups=[group], columns=columns):
                        yield from self._documents(batch, path, start)
                        start += batch.num_rows
                except (pa.ArrowException, OSError) as error:
                    if _is_fault(error):
                        raise
                    self.bad.add(f"{path}:{start}", f"damaged: {error}; rows up to {row - 1} are lost")

    def _columns(self, schema: pa.Schema, path: str) -> list[str]:
        check_column(self.text_key, schema.names, path)
        check_type(schema.field(self.text_key).type, self.text_key, path)
        return (
            [self.text_key, "url"] if "url" in schema.names and is_text(schema.field("url").type) else [self.text_key]
        )

    def _documents(self, batch: pa.RecordBatch, path: str, start: int) -> Iterator[Document]:
        texts = values(batch.column(self.text_key))
        urls = values(batch.column("url")) if "url" in batch.schema.names else [None] * len(texts)
        for row, (text, url) in enumerate(zip(texts, urls, strict=True), start):
            yield from self.document(text, f"{path}:{row}", url)


class Text(Files):
    """A document a file of UTF-8."""

    has_columns = False

    def read_file(self, filepath: str) -> Iterator[Document]:
        path = self.path(filepath)
        try:
            with self.unpacked(filepath) as stream:
                content = stream.read(LONGEST + 1)
        except Damaged as error:
            self.bad.add(path, f"cut off or damaged: {error}")
            return
        if len(content) > LONGEST:
            self.bad.add(path, f"a file of more than {LONGEST >> 20} MiB")
        elif content:
            yield from self.documents(content, path)

    def documents(self, content: bytes, path: str) -> Iterator[Document]:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            self.bad.add(path, f"not UTF-8: {error.reason} at byte {error.start}")
            return
        yield from self.document(text, path)


class Warc(Files, WarcReader):
    """A document a page: of a WARC file the main text of its HTML, of a WET file the text as it is. Records of other
    things, pages without a main text, and pages in an encoding that cannot be told are no documents."""

    has_columns = False

    def read_file(self, filepath: str) -> Iterator[Document]:
        import_module("trafilatura")  # now, so that no forked process begins with importing it
        from warcio.archiveiterator import ArchiveIterator

        path = self.path(filepath)
        number = -1
        extract = partial(_main_text, Trafilatura(deduplicate=False))
        logger.disable("datatrove.pipeline.extractors.base")  # it counts its processes at each file's end
        logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # it explains itself at each page without a text
        with self.unpacked(filepath) as stream, ExtractorSandbox(EXTRACTION_SECONDS) as sandbox:
            records = iter(ArchiveIterator(stream.raw))  # raw: what comes before damage is given before it is told
            while True:
                number += 1
                where = f"{path}:{number}"
                try:
                    record = next(records)
                except StopIteration:
                    return
                except Exception as error:  # warcio has no common error
                    if _is_fault(error):
                        raise
                    why = f"the file is cut off or damaged here: {error or type(error).__name__}"
                    self.bad.add(where, f"{why}; this record and all after it are lost")
                    return
                try:
                    page = process_record(record)
                    if page and _is_cut_off(record):
                        raise Damaged("the file ends within it")
                    if page and record.rec_type != "conversion":
                        page["text"] = sandbox.process_document(page["text"], extract)
                except Exception as error:  # nor has what is called here
                    if _is_fault(error):
                        raise
                    ends = isinstance(error, Damaged)
                    lost = "; it and all after it are lost" if ends else ""
                    self.bad.add(where, f"a record that cannot be read: {error or type(error).__name__}{lost}")
                    if ends:
                        return
                    continue
                if page and page["text"]:
                    yield from self.document(page["text"], where, page["url"])


FORMATS = {"csv": Csv, "jsonl": Jsonl, "parquet": Parquet, "text": Text, "warc": Warc}


def _is_fault(error: Exception) -> bool:
    """Whether a disk or a store failed, perhaps in passing, and not what is in the file. Errors of content have no
    errno; the sandbox's pipe has one when a page breaks it, and is neither."""
    if isinstance(error, OSError):
        return error.errno is not None and not isinstance(error, ConnectionError)
    return isinstance(error, BaseError)


def _json_object(line: bytes) -> dict:
    """
    Raises:
        ValueError: the line is none.
    """
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        row = _lenient_json(line)
    if not isinstance(row, dict):
        raise ValueError(
            f"a JSON object is wanted on each line, this is {line.strip()[:40].decode(errors='replace')!r}"
        )
    return row


def _lenient_json(line: bytes) -> object:
    """The standard library reads what Python's writers write and orjson refuses: NaN, and integers of over 64 bits."""
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start} of the line") from None
    except RecursionError:
        raise ValueError("not valid JSON: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}") from None


def _is_cut_off(record: "ArcWarcRecord") -> bool:
    """Whether a record, of which no more is wanted, is shorter than it says; warcio tells nobody."""
    while record.raw_stream.read(1 << 16):
        pass
    return getattr(record.raw_stream, "limit", 0) > 0


def _main_text(extractor: Trafilatura, html: str) -> str | Exception | None:
    """Runs in the sandbox, which raises an exception that it is given, and dies of one that is raised in it."""
    try:
        return extractor.extract(html)
    except Exception as error:
        return RuntimeError(f"{type(error).__name__}: {error}")
