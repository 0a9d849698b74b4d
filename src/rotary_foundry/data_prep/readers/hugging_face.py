"""Read Hugging Face data sets: from the Hub by name, or from a folder that has a data set's files or was written by
`save_to_disk`.

datatrove 0.9.0's reader distributes single rows over the workers in turn, so parts and the order of documents change
with the number of workers. Here a part is a range of rows that depends only on the size of the data. The data
set is memory-mapped, and reading a part holds BATCH rows in memory.
"""

import re
from collections.abc import Iterator, Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
from datatrove.data import Document

from rotary_foundry.data_prep.readers import CONVERSATIONS, BadInput, Part, SourceConfig
from rotary_foundry.data_prep.readers.listing import digest, part_bytes
from rotary_foundry.data_prep.readers.messages import Unusable, read_conversation, to_text
from rotary_foundry.data_prep.readers.text_columns import check_columns, check_type, is_text, not_text, twice, values
from rotary_foundry.utils.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

BATCH = 100  # rows


def parts(source: SourceConfig) -> list[Part]:
    """Divide the rows into ranges of about the size of a part; for a data set on the Hub, record its current commit."""
    data = _load(source)
    rows = len(data)
    row_bytes = max(1, data.data.nbytes / max(1, data.data.num_rows))
    step = ceil(part_bytes(row_bytes * rows) / row_bytes)
    if not rows:
        raise DataError(f"{source.path}: the data set has no rows; expected at least one")
    revision = _revision(data)
    return [{"rows": [start, min(start + step, rows)], "revision": revision} for start in range(0, rows, step)]


def fingerprint(source: SourceConfig) -> str:
    """Return a fingerprint of a folder's files, or of the files on the Hub at the commit that `datasets` recorded."""
    if Path(source.path).is_dir():
        files = sorted(file for file in Path(source.path).rglob("*") if file.is_file())
        stats = [(file.relative_to(source.path).as_posix(), file.stat()) for file in files]
        return digest((name, stat.st_size, stat.st_mtime) for name, stat in stats)
    data = _load(source)
    return digest([len(data), data.data.nbytes, sorted((data.info.download_checksums or {}).items())])


def _revision(data: "Dataset") -> str | None:
    """Return the commit of a data set from the Hub, from the addresses that `datasets` recorded; None for a folder."""
    found = (re.match(r"hf://datasets/[^@]+@([0-9a-f]{40})/", url) for url in data.info.download_checksums or {})
    return next((address[1] for address in found if address), None)


def read(source: SourceConfig, part: Part, bad: BadInput) -> Iterator[Document]:
    data = _load(source, part["revision"])
    start, end = part["rows"]
    if end > len(data):
        raise DataError(
            f"{source.path}: has {len(data):,} rows, but had at least {end:,} when it was divided into parts"
        )
    columns = _columns(source)
    table = data.with_format("arrow")
    for row in range(start, end, BATCH):
        until = min(row + BATCH, end)
        try:
            batch = table[row:until]
            rows = zip(*(_checked(batch.column(column)) for column in columns), strict=True)
            urls = _checked(batch.column("url")) if _has_url(batch.schema) else [None] * batch.num_rows
        except (pa.ArrowException, OSError, ValueError) as error:
            bad.add(f"{source.path}:{row}", f"damaged: {error}; rows up to {until - 1} are lost", until - row)
            continue
        for number, (of_row, url) in enumerate(zip(rows, urls, strict=True), row):
            where = f"{source.path}:{number}"
            try:
                text = _text(source, columns, of_row)
            except Unusable as error:
                bad.add(where, str(error))
            else:
                yield Document(text, where, metadata={} if not_text(url) else {"url": url})


def _columns(source: SourceConfig) -> tuple[str, ...]:
    return CONVERSATIONS[source.conversations] if source.conversations else (source.text_column or "text",)


def _text(source: SourceConfig, columns: Sequence[str], of_row: Sequence[object]) -> str:
    """Return the text of a document or a conversation. Raises Unusable if the row has none."""
    if source.conversations:
        return to_text(read_conversation(source.conversations, dict(zip(columns, of_row, strict=True))))
    if problem := not_text(of_row[0]):
        raise Unusable(f"column '{columns[0]}' {problem}")
    return of_row[0]


def _load(source: SourceConfig, revision: str | None = None):
    """Load the split of a data set, memory-mapped, and check its text column.

    Args:
        revision: the commit of a data set on the Hub; default: the newest.

    Raises:
        DataError: the data set cannot be loaded, or it has no such split or text column.
    """
    import datasets

    split = source.split or "train"
    try:
        if Path(source.path, "state.json").exists() or Path(source.path, "dataset_dict.json").exists():
            data = datasets.load_from_disk(source.path)
            if isinstance(data, datasets.DatasetDict) and split in data:
                data = data[split]
        else:
            _check_links(Path(source.path))
            data = datasets.load_dataset(source.path, source.name, split=split, revision=revision)
    except DataError:
        raise
    except Exception as error:  # errors of the Hub, the network, the file system or any builder
        cause = f": {_first_line(error.__cause__)}" if error.__cause__ else ""
        raise DataError(f"{source.path}: datasets cannot load it: {_first_line(error)}{cause}") from error
    if isinstance(data, datasets.DatasetDict):
        raise DataError(f"{source.path}: no split '{split}'; the splits there are {', '.join(map(repr, data))}")
    columns = _columns(source)
    check_columns(columns, data.column_names, source.path)
    for column in columns:
        if data.info.builder_name == "csv" and f"{column}.1" in data.column_names:  # pandas renames the second
            raise DataError(
                f"{source.path}: {twice(column)}; datasets calls the second '{column}.1', so a column of that name "
                "has to be renamed"
            )
    if not source.conversations:
        check_type(data.data.schema.field(columns[0]).type, columns[0], source.path)
    return data


def _check_links(folder: Path) -> None:
    """Refuse links to folders and to nothing, which `datasets` passes over.

    Raises:
        DataError: there is such a link.
    """
    for path in sorted(folder.rglob("*")):
        if (
            path.is_symlink()
            and not path.is_file()
            and not any(part[0] == "." for part in path.relative_to(folder).parts)
        ):
            what = "a link to a folder" if path.is_dir() else "a link to nothing"
            raise DataError(f"{path}: {what}, which datasets passes over; remove it, or put the files there")


def _has_url(schema: pa.Schema) -> bool:
    return "url" in schema.names and is_text(schema.field("url").type)


def _checked(column: pa.ChunkedArray) -> list[str | bytes | None]:
    """Return the values of a column, after checking the offsets stored in the file.

    Raises:
        pa.ArrowInvalid: the offsets point outside the data.
    """
    found: list[str | bytes | None] = []
    for chunk in column.chunks:
        if not is_text(chunk.type):
            chunk.validate(full=True)
            found += values(chunk)
            continue
        plain = chunk.dictionary_decode() if pa.types.is_dictionary(chunk.type) else chunk
        plain.view(pa.large_binary() if pa.types.is_large_string(plain.type) else pa.binary()).validate(full=True)
        found += values(plain)
    return found


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
