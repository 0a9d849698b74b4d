"""Read JSONL, CSV, Parquet and plain text: plain or compressed by gzip or Zstandard, local or in a store.

The classes extend those of datatrove 0.9.0 and override `read_file`, because datatrove mishandles bad input. Its JSONL
reader logs a broken line and continues, and ends a file at the first byte that is not UTF-8. Its CSV reader fills up
rows that are too short. Its Parquet reader raises and loses the file. All of them skip documents without text and do
not count them. We use datatrove's handling of folders.
"""

import csv
import io
import posixpath
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.data import Document
from datatrove.pipeline.readers import JsonlReader, ParquetReader
from datatrove.pipeline.readers.base import BaseDiskReader
from datatrove.pipeline.readers.csv import CsvReader

from rotary_foundry.data_prep.readers import CONVERSATIONS, BadInput, Part, SourceConfig
from rotary_foundry.data_prep.readers.json_rows import json_row, occurs_twice
from rotary_foundry.data_prep.readers.listing import fingerprint, parts
from rotary_foundry.data_prep.readers.messages import Unusable, read_conversation, to_text
from rotary_foundry.data_prep.readers.text_columns import (
    check_columns,
    check_type,
    is_text,
    no_column,
    not_text,
    twice,
    values,
)
from rotary_foundry.data_prep.readers.unpacking import (
    Damaged,
    Unpacked,
    any_line_end,
    ends_in_cr,
    gzip_content,
    utf_8_content,
    wide_encoding,
    zstandard_content,
)
from rotary_foundry.utils import object_store
from rotary_foundry.utils.errors import DataError

__all__ = ["fingerprint", "parts", "read"]

LONGEST = 1 << 28  # bytes; a longer document or line is taken for a file of another kind and refused
CONVERT = "convert the file"  # the advice of readers that take no `encoding`
BATCH = 32  # rows of Parquet in memory at a time


def read(source: SourceConfig, part: Part, bad: BadInput) -> Iterator[Document]:
    yield from read_files(FORMATS[source.reader], source, part, bad)


def read_files(reader: type["Files"], source: SourceConfig, part: Part, bad: BadInput) -> Iterator[Document]:
    """Yield the documents of a part's files. A file that gives neither a document nor bad input is without text.

    Raises:
        DataError: a file cannot be opened or fetched.
    """
    opened = reader(part["folder"], source.text_column or "text", bad, source.conversations)
    opened.encoding, opened.delimiter = source.encoding, source.delimiter
    for name in part["files"]:
        if opened.is_dangling(name):
            continue
        left_out, found = (bad.count, bad.without_text), False
        with object_store.named(opened.path(name)):
            for document in opened.read_file(name):
                found = True
                yield document
        if not found and left_out == (bad.count, bad.without_text):
            bad.add_without_text(opened.path(name), opened.nothing)


class Files(BaseDiskReader):
    """The base class of the readers of files.

    Args:
        folder: the folder to which file names are relative, as the user wrote it.
        column: the text column.
        bad: collects the documents that cannot be read.
        conversations: the form of the conversations that the files hold; None: texts.
    """

    has_columns = True
    nothing = "an empty file"  # why a file without text and without bad input gives no document
    encoding: str | None = None  # of the files; None: UTF-8
    advice = "set the source's `encoding{}`"  # if they are in another
    delimiter: str | None = None  # of CSV; None: by the file's ending

    def __init__(self, folder: str, column: str, bad: BadInput, conversations: str | None = None):
        super().__init__(object_store.data_folder(folder), text_key=column)
        self.folder = folder
        self.what = f"column '{column}'" if self.has_columns else "the text"
        self.bad = bad
        self.conversations = conversations
        self.columns = (column,) if conversations is None else CONVERSATIONS[conversations]

    def path(self, name: str) -> str:
        return posixpath.join(self.folder, name)

    def in_wide(self, encoding: str) -> str:
        """Return what is wrong with a file in UTF-16 or UTF-32."""
        return f"{encoding[:6].upper()}, expected UTF-8; {self.advice.format(f': {encoding}')}"

    def is_dangling(self, name: str) -> bool:
        """Return whether a file is a link to nothing; if so, list it as bad input."""
        if found := object_store.is_dangling(self.path(name)):
            self.bad.add(self.path(name), "a link to a file or folder that does not exist")
        return found

    @contextmanager
    def unpacked(self, name: str) -> Iterator[io.BufferedIOBase]:
        """Open a file as a stream of decompressed bytes, in UTF-8 if the source names the files' encoding."""
        with self.data_folder.open(name, "rb") as stored:
            if name.lower().endswith(".gz"):
                stored = Unpacked(gzip_content(stored))
            elif name.lower().endswith(".zst"):
                stored = Unpacked(zstandard_content(stored))
            if self.encoding is not None:
                stored = Unpacked(utf_8_content(stored, self.encoding))
            yield io.BufferedReader(stored, 1 << 20)

    def lines(self, name: str, stream: io.BufferedIOBase) -> Iterator[tuple[int, bytes]]:
        """Yield (number, line) of each line that can be read. Lines end as the first one does: in a CR, or in an LF.

        Raises:
            DataError: the file is UTF-16 or UTF-32.
        """
        number, readline = 0, stream.readline
        try:
            start = stream.peek()
            if encoding := wide_encoding(start):
                raise DataError(f"{self.path(name)}: {self.in_wide(encoding)}")
            ends: tuple[bytes, ...] = (b"\n",)
            if ends_in_cr(start):
                readline, ends = any_line_end(stream), (b"\n", b"\r")
            while line := readline(LONGEST + 1):
                number += 1
                if len(line) <= LONGEST:
                    yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                    continue
                self.bad.add(f"{self.path(name)}:{number}", f"a line of more than {LONGEST >> 20} MiB")
                while line and not line.endswith(ends):
                    line = readline(1 << 20)
        except Damaged as error:
            why = f"the file is cut off or damaged here: {error}; this line and all after it are lost"
            self.bad.add(f"{self.path(name)}:{number + 1}", why)

    def row_document(self, row: Mapping, where: str, url: object = None) -> Iterator[Document]:
        """Yield the document of a row with all `columns`; if it has no document, list it as bad input instead."""
        if self.conversations is None:
            yield from self.document(row[self.text_key], where, url)
            return
        try:
            text = to_text(read_conversation(self.conversations, row))
        except Unusable as error:
            self.bad.add(where, str(error))
        else:
            yield from self.document(text, where, url)

    def document(self, text: object, where: str, url: object = None) -> Iterator[Document]:
        """Yield the document; if `text` is not text, list it as bad input instead."""
        if problem := not_text(text):
            self.bad.add(where, f"{self.what} {problem}")
        else:
            yield Document(text, where, metadata={} if not_text(url) else {"url": url})


class Jsonl(Files, JsonlReader):
    """Reads one document per line and skips blank lines. A line may also be a list of texts."""

    nothing = "no line with a text"

    def read_file(self, filepath: str) -> Iterator[Document]:
        first = True
        with self.unpacked(filepath) as stream:
            for number, line in self.lines(filepath, stream):
                if not line.strip():
                    continue
                where = f"{self.path(filepath)}:{number}"
                try:
                    row = json_row(line, texts=self.conversations is None)
                    several = [column for column in self.columns if occurs_twice(column, line)]
                except ValueError as error:
                    self.bad.add(where, str(error), 1 + line.rstrip().count(b"\r"))
                    continue
                if isinstance(row, list):
                    for place, text in enumerate(row):
                        yield from self.document(text, f"{where}[{place}]")
                    continue
                if first:
                    check_columns(self.columns, row, where)
                    first = False
                missing = [column for column in self.columns if column not in row]
                if missing:
                    self.bad.add(where, no_column(missing[0], row))
                elif several:
                    self.bad.add(where, twice(several[0]))
                else:
                    yield from self.row_document(row, where, row.get("url"))


class Csv(Files, CsvReader):
    """Reads one document per row. The first row has the column names. A row's number is that of its first line.

    A row with misplaced quotes ends where a sound one would: at the first line at which the number of its quotes is
    even. So no part of it is taken for another row, and a quote that is never closed loses the rest of the file. The
    loss is counted in lines, and those that end in a CR among lines that end in an LF count, too.

    A .tsv file has no quotes, unless the source names a delimiter: the text is everything between two tabs.
    """

    nothing = "no row below the names of the columns"

    def read_file(self, filepath: str) -> Iterator[Document]:
        csv.field_size_limit(LONGEST)  # the default is 128 KiB; this setting is global to the process
        path = self.path(filepath)
        last, quotes, returns = 0, 0, 0

        def decoded() -> Iterator[str]:
            nonlocal last, quotes, returns
            for number, line in self.lines(filepath, stream):
                last = number
                quotes += line.count(b'"')
                returns += line.rstrip(b"\r\n").count(b"\r")
                yield line.decode(errors="surrogateescape")  # a later check finds the column of the bad bytes

        with self.unpacked(filepath) as stream:
            lines = decoded()
            rows = csv.reader(lines, strict=True, **self._form(filepath))
            columns: list[str] = []
            while True:
                before, quotes, returns = last, 0, 0
                where = f"{path}:{before + 1}"
                try:
                    row = next(rows)
                except StopIteration:
                    return
                except csv.Error as error:
                    while quotes % 2 and next(lines, None) is not None:
                        pass
                    lost = last - before
                    more = f"; this line and the {lost - 1:,} after it are lost" if lost > 1 else ""
                    self.bad.add(where, f"not valid CSV: {error}{more}", lost + returns)
                    continue
                if not columns:
                    columns = row
                    check_columns(self.columns, columns or ["(a blank line)"], where)
                    urls = columns.index("url") if columns.count("url") == 1 else None
                elif row and len(row) != len(columns):
                    self.bad.add(where, f"expected {len(columns)} fields, one per column, got {len(row)}")
                elif row:
                    url = None if urls is None else row[urls]
                    yield from self.document(row[columns.index(self.text_key)], where, url)

    def _form(self, name: str) -> dict[str, object]:
        """Return the arguments of csv.reader for a file."""
        if self.delimiter is not None:
            return {"delimiter": self.delimiter}
        is_tsv = name.lower().removesuffix(".gz").removesuffix(".zst").endswith(".tsv")
        return {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if is_tsv else {}


class Parquet(Files, ParquetReader):
    """Reads one document per row of a text column. Memory holds a page and BATCH rows."""

    nothing = "no rows"

    def read_file(self, filepath: str) -> Iterator[Document]:
        path = self.path(filepath)
        with self.data_folder.open(filepath, "rb") as stored:
            if not stored.size:
                return
            try:
                # page by page; without both, a whole column of a group is read at once
                file = pq.ParquetFile(stored, buffer_size=1 << 20, pre_buffer=False)
                columns = self._columns(file.schema_arrow, path)
                groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                if is_fault(error):
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
                    if is_fault(error):
                        raise
                    self.bad.add(f"{path}:{start}", f"damaged: {error}; rows up to {row - 1} are lost", row - start)

    def _columns(self, schema: pa.Schema, path: str) -> list[str]:
        check_columns(self.columns, schema.names, path)
        if self.conversations is None:
            check_type(schema.field(self.text_key).type, self.text_key, path)
        has_url = schema.names.count("url") == 1 and is_text(schema.field("url").type)
        return [*self.columns, *(["url"] if has_url else [])]

    def _documents(self, batch: pa.RecordBatch, path: str, start: int) -> Iterator[Document]:
        urls = values(batch.column("url")) if "url" in batch.schema.names else [None] * batch.num_rows
        columns = zip(*(values(batch.column(column)) for column in self.columns), strict=True)
        for row, (of_row, url) in enumerate(zip(columns, urls, strict=True), start):
            yield from self.row_document(dict(zip(self.columns, of_row, strict=True)), f"{path}:{row}", url)


class Text(Files):
    """Reads one document per file, in UTF-8."""

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
        if encoding := wide_encoding(content):
            self.bad.add(path, self.in_wide(encoding))
            return
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            why = f"not UTF-8, and neither UTF-16 nor UTF-32: {error.reason} at byte {error.start}"
            self.bad.add(path, f"{why}; {self.advice.format('')}")
            return
        yield from self.document(text, path)


FORMATS = {"csv": Csv, "jsonl": Jsonl, "parquet": Parquet, "text": Text}


def is_fault(error: Exception) -> bool:
    """Return whether a disk or a store failed, perhaps temporarily; False if the file's content is bad.

    Errors of content have no errno. The pipe to the sandbox of a web page (warc.py) raises one with errno when the page
    breaks it; that is not a failure of the disk or the store.
    """
    if isinstance(error, OSError):
        return error.errno is not None and not isinstance(error, ConnectionError)
    return isinstance(error, object_store.StoreError)
