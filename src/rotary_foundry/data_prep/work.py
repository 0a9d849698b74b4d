"""The work folder: the files that a preparation keeps between its stages.

    lock.json                         the process that works here (runs/run_lock.py)
    settings.json                     the settings of this work; resuming with different ones is refused
    parts/<task>.json                 what each task reads
    documents/<split>/<task>.parquet  the documents of a task: id, text, hash
    read/<task>.json                  counts of documents dropped while reading, by reason
    duplicates/*.npy                  the documents to leave out, as (file, row)
    minhash/                          datatrove's files for finding near-duplicates
    held_out/<task>.npy               hashes of the held-out texts of labelled tasks, and then of sources
    labelled/<task>.json              the labels of a labelled task, and counts of what it wrote
    written/<task>.json               counts of what a task wrote
    whole/                            the prepared folder, until it is complete
    logs/<stage>/                     datatrove's: completions, statistics, logs
    errors/<stage>-<task>.txt         the errors of failed tasks, one line each
    bad_input.txt                     what could not be read, if a source has no documents

Documents are kept as text between reading and tokenising, although this costs disk space (nano: 29 % of the text).
Duplicates are known only when all documents have been read, and this way filters, downloads and HTML extraction run
only once.

A task is a part of a source. Tasks depend only on the input, so that the same input gives the same shards for any
number of workers. A document file has the number of its task; the files of validation follow those of training.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rotary_foundry.data_prep.corpus_config import CorpusConfig
from rotary_foundry.data_prep.readers.bad_input import NAMED
from rotary_foundry.utils.errors import DataError

SPLITS = ("train", "validation")
BAD_INPUT = "bad_input.txt"
WITHOUT_TEXT = "without text"  # the kind of pages and files that are left out because they give no text
HELD_OUT = "held-out"  # the kind of documents that are left out because a task holds them out
BATCH_BYTES = 1 << 21  # bytes of text in memory at a time; the tokenizers library needs about twenty times as much


@dataclass(frozen=True)
class Task:
    """A part of a source."""

    source: str
    number: int  # index of the part in its source


@dataclass(frozen=True)
class Work:
    """A preparation in progress. It is sent to every task, so long lists are kept in the folder, not in this object."""

    config: CorpusConfig
    folder: Path
    parts: dict[str, int]  # number of parts by source

    @property
    def tasks(self) -> list[Task]:
        """All parts of all sources, in reading order."""
        return [Task(source, number) for source, parts in self.parts.items() for number in range(parts)]

    def part(self, rank: int) -> list:
        """Read the part of a task, as `readers.parts` returned it."""
        return json.loads((self.folder / "parts" / f"{rank:05d}.json").read_text(encoding="utf-8"))

    @property
    def whole(self) -> Path:
        """The prepared folder, until it is complete."""
        return self.folder / "whole"

    @property
    def files(self) -> range:
        """The numbers of all document files."""
        return range(len(SPLITS) * sum(self.parts.values()))

    def file(self, number: int) -> Path:
        """Return the path of a document file by its number."""
        split, rank = divmod(number, sum(self.parts.values()))
        return self.documents(rank, SPLITS[split])

    def documents(self, rank: int, split: str) -> Path:
        """Return the path of the document file of a task."""
        return self.folder / "documents" / split / f"{rank:05d}.parquet"

    def files_of(self, source: str, split: str) -> list[int]:
        """Return the numbers of a source's document files, in reading order."""
        first = SPLITS.index(split) * len(self.tasks)
        return [first + rank for rank, task in enumerate(self.tasks) if task.source == source]

    def place(self, source: str, number: int) -> tuple[str, str]:
        """Return where the rows of a part are: the folder of its source (or band) or task, and its name in it."""
        task = self.config.task_of(source)
        return (source, f"{number:05d}") if task is None else (task, f"{source}-{number:05d}")

    def dropped(self, file: int, kind: str = "") -> np.ndarray:
        """Return the sorted rows of a document file to leave out (of `kind`, if given), int64 `[documents]`."""
        found = []
        for path in sorted((self.folder / "duplicates").glob(f"{kind}*.npy")):
            pairs = np.load(path, mmap_mode="r")  # sorted
            first, last = np.searchsorted(pairs[:, 0], (file, file + 1))
            found.append(pairs[first:last, 1].astype(np.int64))
        return np.unique(np.concatenate([np.zeros(0, np.int64), *found]))

    def left_out(self, source: str) -> Counter:
        """Count the documents of a source that are left out before tokenising, by reason."""
        reasons: Counter = Counter()
        for part in self.read_json("read"):
            if part["source"] == source:
                reasons.update(part["dropped"])
        for split in SPLITS:
            for file in self.files_of(source, split):
                exact, held_out = (len(self.dropped(file, kind)) for kind in ("exact", HELD_OUT))
                near = len(self.dropped(file)) - exact - held_out
                reasons.update({"duplicates": exact, "near-duplicates": near, "held out by a task": held_out})
        return +reasons

    def first_left_out(self, source: str) -> list[str]:
        """Return where the first documents of a source were left out while reading, and why."""
        parts = [part for part in self.read_json("read") if part["source"] == source]
        first = {reason: where for part in reversed(parts) for reason, where in part.get("first", {}).items()}
        listed = [[line for part in parts for line in part.get(kind, ())] for kind in ("bad", WITHOUT_TEXT)]
        return [*listed[0][:NAMED], *listed[1][:NAMED], *first.values()]

    def write_bad_input(self, folder: Path) -> None:
        """Write the list of what could not be read or encoded, and of what has no text, into a folder."""
        read = self.read_json("read")
        bad = [f"{part['source']}: {line}\n" for part in read for line in part["bad"]]
        names = [task.source for task in self.tasks] + list(self.config.sources)
        for rank, written in self.numbered_json("written"):
            left_out = [*written.get("bad", ()), *written.get("too_long", ())]
            bad += [f"{names[rank]}: {line}\n" for line in left_out]
        for part in read:
            listed = part.get(WITHOUT_TEXT, [])
            bad += [f"{part['source']}: {line}\n" for line in listed]
            if more := part["dropped"].get(WITHOUT_TEXT, 0) - len(listed):
                bad.append(f"{part['source']}: {more:,} more without text in the same part\n")
        (folder / BAD_INPUT).write_text("".join(bad), encoding="utf-8", errors="backslashreplace")

    def keep_error(self, stage: str, rank: int, message: str) -> None:
        """Write the error of a task."""
        path = self._error(stage, rank)
        path.parent.mkdir(exist_ok=True)
        path.write_text(message, encoding="utf-8")

    def forget_error(self, stage: str, rank: int) -> None:
        """Delete the error of a task before it is tried again."""
        self._error(stage, rank).unlink(missing_ok=True)

    def errors(self, stage: str) -> list[str]:
        """Read the errors of the tasks of a stage, in task order. On a full disk an error's file may be empty."""
        texts = [path.read_text(encoding="utf-8") for path in sorted(self.folder.glob(f"errors/{stage}-*.txt"))]
        return [text for text in texts if text]

    def _error(self, stage: str, rank: int) -> Path:
        return self.folder / "errors" / f"{stage}-{rank:05d}.txt"

    def write_json(self, kind: str, rank: int, content: dict) -> None:
        """Write the result of a task."""
        path = self.folder / kind / f"{rank:05d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")

    def read_json(self, kind: str) -> list[dict]:
        """Read the results of all tasks, in task order."""
        return [content for _, content in self.numbered_json(kind)]

    def numbered_json(self, kind: str) -> Iterator[tuple[int, dict]]:
        """Yield the number and the result of each task, in task order."""
        for path in sorted((self.folder / kind).glob("*.json")):
            yield int(path.stem), json.loads(path.read_text(encoding="utf-8"))


class DocumentWriter:
    """Writes a document file with one row group for every BATCH_BYTES of text."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path.parent.mkdir(parents=True, exist_ok=True)
        self._schema = pa.schema([("id", pa.string()), ("text", pa.large_string()), ("hash", pa.binary(16))])
        # texts rarely repeat, so dictionaries and statistics save nothing and make reading six times as slow
        plain = {"use_dictionary": False, "write_statistics": False}
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd", compression_level=1, **plain)
        self._waiting: dict[str, list] = {name: [] for name in self._schema.names}
        self._waiting_bytes = 0
        self.bytes = 0  # of UTF-8 text, written or buffered
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
        """Write the buffered documents and the file's end."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._waiting["id"]:
            self._writer.write_table(pa.table(self._waiting, schema=self._schema))
        self._waiting = {name: [] for name in self._waiting}
        self._waiting_bytes = 0


def read_documents(path: Path, dropped: np.ndarray | None = None) -> Iterator[list[tuple[str, str, bytes]]]:
    """Yield batches of (id, text, hash), of about BATCH_BYTES of text each, without the rows `dropped` (sorted).

    Raises:
        DataError: the file is missing or damaged.
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
    """Yield the hashes in a document file in batches, each hash as two halves: uint64 `[documents, 2]`."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(1 << 18, columns=["hash"]):
            yield np.frombuffer(b"".join(batch.column(0).to_pylist()), dtype=">u8").reshape(-1, 2).astype(np.uint64)
