"""`data show` and `data search`: show the text of rows, decoded from the shards and not read from the source files.

A document is decoded from its piece in the row. Pieces of one document have the same number and id.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.text import Text

from rotary_foundry.data.rows import decode_row
from rotary_foundry.data_prep.inspection.shard_folder import Shard, ShardFolder
from rotary_foundry.data_prep.inspection.shown_targets import targets_in_words
from rotary_foundry.data_prep.inspection.source_folders import INDEX, Texts, find_folders, printable
from rotary_foundry.utils.errors import ConfigurationError, DataError

SHORTENED = 400, 100  # characters shown of a long document's beginning and end
AROUND = 40  # characters shown on each side of the searched text
ROWS_AT_A_TIME = 64  # decoded: some megabytes of text


@dataclass(frozen=True)
class ShownDocument:
    """A document, or a piece of one, in a row."""

    number: int | None  # line in its part's table of documents; None in a corpus without such tables
    id: str | None  # origin as "path:line"; None if unknown
    tokens: int  # in this row, [CLS] and [SEP] included
    text: str
    targets: tuple[str, ...] = ()  # its targets in a task, in words


@dataclass(frozen=True)
class Hit:
    """A document that contains the searched text."""

    folder: Path
    row: int
    document: int  # its place in the row, from 0
    id: str | None
    snippet: str


def documents_of(folder: ShardFolder, row: int) -> list[ShownDocument]:
    """Decode the documents of a row.

    Raises:
        DataError: the row does not exist; or its shard, its table of documents or the tokenizer is missing or damaged.
    """
    sample = folder.row(row)
    documents = decode_row(sample)
    texts = Texts(folder.tokenizer_folder).decode(documents, framed="responses" not in sample)
    numbers = sample["documents"].tolist() if "documents" in sample else [None] * len(documents)
    ids = ids_of(folder, folder.shard_of(row), sample)
    targets = targets_in_words(folder, sample) if "targets" in sample else [()] * len(documents)
    return [
        ShownDocument(number, id_, len(document), text, of_document)
        for number, id_, document, text, of_document in zip(numbers, ids, documents, texts, targets, strict=True)
    ]


def ids_of(folder: ShardFolder, shard: Shard, sample: dict) -> list[str | None]:
    """Return the id of each document of a row; None in a corpus without tables of documents.

    Raises:
        DataError: the table of the row's part is missing or broken.
    """
    if shard.part is None or "documents" not in sample:
        return [None] * len(sample["lengths"])
    return folder.document_ids(shard, sample["documents"])


def print_row(directory: str | Path, row: int, full: bool = False, console: Console | None = None) -> None:
    """Print the documents of a row of a folder of shards.

    Raises:
        DataError: `directory` is not a folder of shards; or as `documents_of`.
    """
    console = console or Console(highlight=False)
    if not Path(directory, INDEX).is_file():
        inside = find_folders(directory)
        raise DataError(
            f"{directory}: not a folder of shards, but it contains some; give one of them, such as {inside[0]}"
        )
    folder = ShardFolder(directory)
    documents = documents_of(folder, row)
    shard = folder.shard_of(row)
    tokens = sum(document.tokens for document in documents)
    console.print(
        f"row {row} of {folder.path} (row {row - shard.first_row} of {shard.name}): documents: {len(documents)}, "
        f"tokens: {tokens:,}",
        markup=False,
        soft_wrap=True,
    )
    for place, document in enumerate(documents):
        where = document.id if document.id is not None else "id unknown"
        number = "" if document.number is None else f", number {document.number} of its part"
        heading = f"\ndocument {place}: {document.tokens:,} tokens{number}, {printable(where)}"
        console.print(Text(heading, style="bold"), soft_wrap=True)
        console.print(Text(printable(document.text if full else _shortened(document.text))), soft_wrap=True)
        for target in document.targets:
            console.print(Text(f"→ {printable(target)}"), soft_wrap=True)


def _shortened(text: str) -> str:
    start, end = SHORTENED
    left_out = len(text) - start - end
    return text if left_out <= 0 else f"{text[:start]}\n[… {left_out:,} characters; --full shows them …]\n{text[-end:]}"


def search(directory: str | Path, text: str) -> Iterator[Hit]:
    """Yield each document or piece, in and below a directory, that contains exactly `text`.

    Raises:
        ConfigurationError: the text is empty.
        DataError: the directory has no shards, or a file is missing or damaged.
    """
    if not text:
        raise ConfigurationError("the text to search for is empty; give at least one character")
    for path in find_folders(directory):
        folder = ShardFolder(path)
        texts = Texts(folder.tokenizer_folder)
        for shard in folder.shards:
            rows = enumerate(folder.rows(shard), shard.first_row)
            while some := list(islice(rows, ROWS_AT_A_TIME)):
                yield from _hits(folder, shard, texts, some, text)


def _hits(folder: ShardFolder, shard: Shard, texts: Texts, rows: list[tuple[int, dict]], text: str) -> Iterator[Hit]:
    documents = [
        (row, place, sample, tokens) for row, sample in rows for place, tokens in enumerate(decode_row(sample))
    ]
    decoded = texts.decode([tokens for *_, tokens in documents], framed="responses" not in rows[0][1])
    for (row, place, sample, _), document in zip(documents, decoded, strict=True):
        at = document.find(text)
        if at >= 0:
            snippet = document[max(0, at - AROUND) : at + len(text) + AROUND]
            yield Hit(folder.path, row, place, ids_of(folder, shard, sample)[place], snippet)


def print_hits(directory: str | Path, text: str, limit: int, console: Console | None = None) -> None:
    """Print the first `limit` hits of a search, each with the folder and row that `data show` takes.

    Raises:
        ConfigurationError, DataError: as `search`.
    """
    console = console or Console(highlight=False)
    hits = search(directory, text)
    shown = list(islice(hits, limit))
    for hit in shown:
        id_ = "id unknown" if hit.id is None else printable(hit.id)
        console.print(
            Text(f"{hit.folder} row {hit.row} document {hit.document}, {id_}", style="bold"),
            Text(f"    {' '.join(printable(hit.snippet).split())}"),
            sep="\n",
            soft_wrap=True,
        )
    if not shown:
        console.print(f"{directory}: '{text}' is in no document", markup=False, soft_wrap=True)
    elif len(shown) == limit and next(hits, None) is not None:
        console.print(f"there are more; --limit {limit} is reached")
