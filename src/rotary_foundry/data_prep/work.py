"""The work folder: what a preparation keeps between its stages, and where each thing lies in it.

    lock.json                         which process is at work here (runs/run_lock.py)
    settings.json                     what the work follows from; with other settings it is not gone on with
    parts/<task>.json                 what each task reads
    documents/<split>/<task>.parquet  the documents of a task: id, text, hash
    read/<task>.json                  what was dropped while they were read, and why
    duplicates/*.npy                  the documents to leave out, as (file, row)
    written/<task>.json               counts of what a task wrote
    whole/                            the prepared folder as it grows
    logs/<stage>/                     datatrove's: completions, statistics, logs
    errors/<stage>-<task>.txt         one line each, of tasks that failed

Documents are kept as text between reading and tokenising, although it costs disk (nano: 29 % of the text): the
duplicates of a document are known only when all have been read, and filters, downloads and HTML need not be done twice.

A task is a part of a source. Tasks follow from the input alone, so that the same input gives the same shards for any
number of workers. A document file is numbered by its task, those of validation after those of training.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rotary_foundry.data_prep.corpus_config import CorpusConfig
from rotary_foundry.utils.errors import DataError

SPLITS = ("train", "validation")
BATCH_BYTES = 1 << 21  # of text held at a time; the tokenizers library needs some twenty times as much for it


@dataclass(frozen=True)
class Task:
    """A part of a source."""

    source: str
    number: int  # of the part within its source


@dataclass(frozen=True)
class Work:
    """A preparation under way. It is sent to every task, so what could be long is in the folder and not in here."""

    config: CorpusConfig
    folder: Path
    parts: dict[str, int]  # how many, by source

    @property
    def tasks(self) -> list[Task]:
        """All parts of all sources, in reading order."""
        return [Task(source, number) for source, parts in self.parts.items() for number in range(parts)]

    def part(self, rank: int) -> list:
        """What the part of a task is, as `readers.parts` gave it."""
        return json.loads((self.folder / "parts" / f"{rank:05d}.json").read_text(encoding="utf-8"))

    @property
    def whole(self) -> Path:
        """The prepared folder as it grows."""
        return self.folder / "whole"

    @property
    def files(self) -> range:
        """The numbers of all document files."""
        return range(len(SPLITS) * sum(self.parts.values()))

    def file(self, number: int) -> Path:
        """A document file, by its number."""
        split, rank = divmod(number, sum(self.parts.values()))
        return self.documents(rank, SPLITS[split])

    def documents(self, rank: int, split: str) -> Path:
        """The document file of a task."""
        return self.folder / "documents" / split / f"{rank:05d}.parquet"

    def files_of(self, source: str, split: str) -> list[int]:
        """The numbers of a source's document files, in reading order."""
        first = SPLITS.index(split) * len(self.tasks)
        return [first + rank for rank, task in enumerate(self.tasks) if task.source == source]

    def dropped(self, file: int, kind: str = "") -> np.ndarray:
        """The rows of a document file that are duplicates (of a kind, exact or near), sorted, int64 `[documents]`."""
        found = []
        for path in sorted((self.folder / "duplicates").glob(f"{kind}*.npy")):
            pairs = np.load(path, mmap_mode="r")  # sorted
            first, last = np.searchsorted(pairs[:, 0], (file, file + 1))
            found.append(pairs[first:last, 1].astype(np.int64))
        return np.unique(np.concatenate([np.zeros(0, np.int64), *found]))

    def left_out(self, source: str) -> Counter:
        """How many documents of a source are left out before tokenising, by reason."""
        reasons: Counter = Counter()
        for part in self.read_json("read"):
            if part["source"] == source:
                reasons.update(part["dropped"])
        for split in SPLITS:
            for file in self.files_of(source, split):
                exact = len(self.dropped(file, "exact"))
                reasons.update({"duplicates": exact, "near-duplicates": len(self.dropped(file)) - exact})
        return +reasons

    def keep_error(self, stage: str, rank: int, message: str) -> None:
        """Keep what went wrong in a task."""
        path = self._error(stage, rank)
        path.parent.mkdir(exist_ok=True)
        path.write_text(message, encoding="utf-8")

    def forget_error(self, stage: str, rank: int) -> None:
        """A task is tried again."""
        self._error(stage, rank).unlink(missing_ok=True)

    def errors(self, stage: str) -> list[str]:
        """What went wrong in the tasks of a stage, in their order."""
        return [path.read_text(encoding="utf-8") for path in sorted(self.folder.glob(f"errors/{stage}-*.txt"))]

    def _error(self, stage: str, rank: int) -> Path:
        return self.folder / "errors" / f"{stage}-{rank:05d}.txt"

    def write_json(self, kind: str, rank: int, content: dict) -> None:
        """Keep what a task found out."""
        path = self.folder / kind / f"{rank:05d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")

    def read_json(self, kind: str) -> list[dict]:
        """What every task found out, in their order."""
        return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((self.folder / kind).glob("*.json"))]


class DocumentWriter:
    """Writes a document file, a row group for every BATCH_BYTES of text."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path.parent.mkdir(parents=True, exist_ok=True)
        self._schema = pa.schema([("id", pa.string()), ("text", pa.large_string()), ("hash", pa.binary(16))])
        # no text is like another: dictionaries and statistics make reading six times as slow
        plain = {"use_dictionary": False, "write_statistics": False}
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd", compression_level=1, **plain)
        self._waiting: dict[str, list] = {name: [] for name in self._schema.names}
        self._waiting_bytes = 0
        self.bytes = 0  # of UTF-8 text, written or waiting
        self.documents = 0

    def add(self, id: str, text: str, size: int, text_hash: bytes) -> None:
        """Write a document of `size` bytes; `text_hash` has sixteen bytes."""
        for column, value in zip(self._waiting.values(), (id, text, text_hash), strict=True):
            column.append(value)
        self._waiting_bytes += size
        self.bytes += size
        self.documents += 1
        if self._waiting_bytes >= BATCH_BYTES:
            self._flush()

    def close(self) -> None:
        """Write what waits, and the file's end."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._waiting["id"]:
            self._writer.write_table(pa.table(self._waiting, schema=self._schema))
        self._waiting = {name: [] for name in self._waiting}
        self._waiting_bytes = 0


def read_documents(path: Path, dropped: np.ndarray | None = None) -> Iterator[list[tuple[str, str, bytes]]]:
    """Batches of (id, text, hash), of about BATCH_BYTES of text each, without the rows `dropped` (sorted).

    Raises:
        DataError: the file is gone or damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            start = 0
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                rows = zip(*(table.column(name).to_pylist() for name in ("id", "text", "hash")), strict=True)
                if dropped is None:
                    yield list(rows)
                else:
                    first, last = np.searchsorted(dropped, (start, start + table.num_rows))
                    out = set((dropped[first:last] - start).tolist())
                    yield [row for index, row in enumerate(rows) if index not in out]
                start += table.num_rows
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete the work folder and start again") from error


def read_hashes(path: Path) -> Iterator[np.ndarray]:
    """The hashes in a document file, some after the other, as two halves each: uint64 `[documents, 2]`."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(1 << 18, columns=["hash"]):
            yield np.frombuffer(b"".join(batch.column(0).to_pylist()), dtype=">u8").reshape(-1, 2).astype(np.uint64)
