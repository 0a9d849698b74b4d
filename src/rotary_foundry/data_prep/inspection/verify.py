"""`data verify`: check that shards are undamaged and agree with their manifests and tables of documents.

Memory holds one shard and the token counts of one part at a time. Verification does not stop at the first fault: it
lists all bad shards, so that they can be restored from a copy. Totals of a part or of a folder are compared only if all
of its shards could be read.

A training part leaves out its last row if it could not fill it. So up to one row of its documents' tokens may be
missing. Held-out documents must be complete.

Rows of conversations may lack conversations that do not fit, and may hold cut ones.

statistics.json, which preparation writes last, names the folders that a corpus should have. A folder that is missing
entirely leaves no trace elsewhere.
"""

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rotary_foundry.data.damage import damage_of
from rotary_foundry.data.rows import FRAME, Frame, Manifest, row_complaint
from rotary_foundry.data.task_file import TASK_FILE, Task
from rotary_foundry.data_prep.inspection.shard_folder import Shard, ShardFolder
from rotary_foundry.data_prep.inspection.source_folders import Folder, Texts, find_folders
from rotary_foundry.data_prep.statistics import FILE as STATISTICS
from rotary_foundry.data_prep.statistics import Statistics
from rotary_foundry.data_prep.work import SPLITS
from rotary_foundry.utils.errors import DataError


@dataclass
class Report:
    """What was checked, and the problems found."""

    folders: int = 0
    shards: int = 0
    rows: int = 0
    documents: int = 0  # each piece of a long document counts
    tokens: int = 0
    problems: list[str] = field(default_factory=list)  # one line each: the file, and what is wrong with it
    bad_shards: int = 0

    def __str__(self) -> str:
        checked = f"{self.rows:,} rows, {self.documents:,} documents, {self.tokens:,} tokens"
        if not self.problems:
            return f"all good: {self.shards:,} shards in {self.folders:,} folders, {checked}"
        return (
            f"{self.bad_shards:,} of {self.shards:,} shards are bad; {len(self.problems):,} problems, each named above"
        )


def verify(directory: str | Path) -> Report:
    """Check a folder of shards, or a whole prepared corpus.

    Raises:
        DataError: no shards are there.
    """
    report = Report()
    folders = find_folders(directory)
    for tokenizer_folder, of_corpus in _by_corpus(folders).items():
        try:
            texts = Texts(tokenizer_folder)
        except DataError as error:
            report.problems.append(str(error))
            texts = None
        for folder in of_corpus:
            _verify_folder(folder, texts, report)
    report.problems += _missing_folders(folders, Path(os.path.abspath(directory)))
    return report


def _by_corpus(folders: list[Path]) -> dict[Path, list[Path]]:
    corpora = defaultdict(list)
    for folder in folders:
        corpora[Folder(folder).tokenizer_folder].append(folder)
    return corpora


def _missing_folders(folders: list[Path], directory: Path) -> Iterator[str]:
    """Yield a problem for each missing folder of a corpus.

    statistics.json names the folders; without it, every source should have the row lengths that any source has.
    """
    corpus = {path for path in folders if directory in path.parents[2:3] and path.parent.name.isdigit()}
    sources = {folder.parents[1].name for folder in corpus}
    row_lengths = {int(folder.parent.name) for folder in corpus}
    if (directory / STATISTICS).exists():
        try:
            statistics = Statistics.read(directory)
            sources |= set(statistics.folders)
            row_lengths |= set(statistics.configuration["row_lengths"])
        except DataError as error:
            yield str(error)
        except (KeyError, TypeError) as error:
            yield f"{directory}/{STATISTICS}: broken ({error!r})"
    for source in sorted(sources):
        for row_length in sorted(row_lengths):
            for split in SPLITS:
                folder = directory / source / str(row_length) / split
                if folder not in corpus:
                    yield f"{folder}: no shards there"


@dataclass
class _Totals:
    documents: int = 0
    tokens: int = 0


def _verify_folder(path: Path, texts: Texts | None, report: Report) -> None:
    report.folders += 1
    try:
        manifest = Manifest.read(path)
    except DataError as error:
        report.problems.append(str(error))
        manifest = None
    try:
        folder = ShardFolder(path)
    except DataError as error:
        report.problems.append(str(error))
        return
    report.shards += len(folder.shards)
    report.rows += folder.size
    totals = _Totals()
    bad_before = report.bad_shards
    parts: dict[str | None, list[Shard]] = defaultdict(list)
    for shard in folder.shards:
        parts[shard.part].append(shard)
    for part in folder.tables():
        parts[part]  # a part may have documents and no shard
    try:
        task = Task.read(path.parents[1]) if (path.parents[1] / TASK_FILE).exists() else None
    except DataError as error:
        report.problems.append(str(error))
        return
    for part, shards in parts.items():
        _verify_part(folder, part, shards, manifest, texts, totals, report, task)
    report.documents += totals.documents
    report.tokens += totals.tokens
    if manifest is not None:
        all_read = report.bad_shards == bad_before
        report.problems += _against_manifest(folder, manifest, texts, totals if all_read else None)


def _against_manifest(
    folder: ShardFolder, manifest: Manifest, texts: Texts | None, totals: _Totals | None
) -> Iterator[str]:
    """Yield the differences between a manifest and its folder. `totals` is None if some shards could not be read."""
    there: dict[str, object] = {"rows": folder.size}
    if totals is not None:
        there |= {"documents": totals.documents, "tokens": totals.tokens}
    if texts is not None:
        there["tokenizer"] = texts.fingerprint
    if folder.path.parent.name.isdigit():  # it lies where preparation wrote it
        there |= {"split": folder.split, "row_length": int(folder.path.parent.name)}
        there["source"] = folder.path.parents[1].name
    for key, value in there.items():
        said = getattr(manifest, key)
        if said != value:
            yield f"{folder.path}/manifest.json: {key}: the manifest says {said}, the folder has {value}"


def _verify_part(
    folder: ShardFolder,
    part: str | None,
    shards: list[Shard],
    manifest: Manifest | None,
    texts: Texts | None,
    totals: _Totals,
    report: Report,
    task: Task | None,
) -> None:
    lengths = None
    if part is not None:
        try:
            lengths = folder.documents(part, ["tokens"])["tokens"].to_numpy()
        except DataError as error:
            report.problems.append(str(error))
    checked = _Rows(manifest, texts, lengths, task)
    bad = 0
    for shard in shards:
        problems = list(_copy_problems(folder, shard)) + checked.check(folder, shard)
        report.problems += [f"{folder.path}/{shard.name}: {problem}" for problem in problems]
        bad += bool(problems)
    report.bad_shards += bad
    totals.documents += checked.documents
    totals.tokens += checked.tokens
    if not bad and lengths is not None and manifest is not None and manifest.responses is None:
        allowed = manifest.row_length if folder.split == "train" else 0
        missing = int(np.maximum(lengths - checked.tokens_of, 0).sum())
        if missing > allowed:
            first = int(np.argmax(checked.tokens_of < lengths))
            report.problems.append(
                f"{folder.path}: {missing} tokens of part {part}'s documents are in no row, starting with document "
                f"{first}; at most {allowed} may be left out of a part"
            )


def _copy_problems(folder: ShardFolder, shard: Shard) -> Iterator[str]:
    """Yield what is wrong with the decompressed copy that a run left beside a shard, if there is one."""
    info = shard.reader.raw_data
    if shard.reader.zip_data is None or not (folder.path / info.basename).exists():
        return
    try:
        damage = damage_of((folder.path / info.basename).read_bytes(), info)
    except OSError as error:
        damage = f"cannot be read: {error}"
    if damage:
        yield f"its decompressed copy, {info.basename}, is damaged: {damage}; delete it"


class _Rows:
    """Checks the rows of one part against its documents.

    Args:
        lengths: content tokens of each document of the part, int64 [documents]; None if unknown.
        task: the task of the rows; None if they belong to no task.
    """

    def __init__(
        self, manifest: Manifest | None, texts: Texts | None, lengths: NDArray[np.int64] | None, task: Task | None
    ):
        self.task = task
        self.row_length = manifest.row_length if manifest else np.iinfo(np.int64).max
        self.vocab_size = texts.vocab_size if texts else np.iinfo(np.int64).max
        self.frame = texts.frame if texts else None
        self.lengths = lengths
        self.tokens_of = None if lengths is None else np.zeros_like(lengths)  # tokens found so far of each document
        self.documents = 0
        self.tokens = 0

    def check(self, folder: ShardFolder, shard: Shard) -> list[str]:
        """Return what is wrong with a shard: it cannot be read, or its first bad row."""
        try:
            raw = folder.raw(shard)
        except DataError as error:
            return [str(error).removeprefix(f"{folder.path}/{shard.name}: ")]
        first, bad = None, 0
        try:
            for row, sample in enumerate(shard.rows(raw), shard.first_row):
                complaint = self._complaint(sample)
                if complaint and first is None:
                    first = f"row {row} has {complaint}"
                bad += complaint is not None
        except ValueError as error:
            return [str(error)]
        if first is None:
            return []
        return [first + (f" ({bad - 1} more of its {shard.reader.samples} rows are bad)" if bad > 1 else "")]

    def _complaint(self, sample: dict) -> str | None:
        missing = {"tokens", "lengths"} - sample.keys()
        if missing:
            return f"no column {min(missing)}"
        complaint = row_complaint(sample, self.row_length, self.vocab_size, self.task)
        if complaint:
            return complaint
        tokens, lengths = sample["tokens"], sample["lengths"].astype(np.int64)
        self.documents += len(lengths)
        self.tokens += len(tokens)
        ends = lengths.cumsum()
        if "responses" in sample:  # its template writes the special tokens, and it may be cut
            return None if self.lengths is None else self._documents_complaint(sample, np.zeros_like(lengths))
        if self.frame and not _in_frames(self.frame, tokens, ends - lengths, ends):
            return "a document without the tokenizer's special tokens at its beginning and end"
        return None if self.lengths is None else self._documents_complaint(sample, lengths - FRAME.slots)

    def _documents_complaint(self, sample: dict, found: NDArray[np.int64]) -> str | None:
        """Return what is wrong with the document numbers of a row that has `found` content tokens of each document."""
        numbers = sample.get("documents")
        if numbers is None:
            return "no column 'documents'"
        if len(numbers) != len(found):
            return f"{len(numbers)} document numbers for its {len(found)} documents"
        if numbers.max() >= len(self.lengths):
            return f"document number {numbers.max()}, but the table of its part has {len(self.lengths)} lines"
        longer = found > self.lengths[numbers]
        if longer.any():
            number = numbers[longer][0]
            return f"{found[longer][0]} tokens of document {number}, which has only {self.lengths[number]}"
        np.add.at(self.tokens_of, numbers, found)
        return None


def _in_frames(frame: Frame, tokens: NDArray, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> bool:
    """Return whether each document of a row begins and ends with the special tokens of its frame."""
    before = [tokens[starts + place] == token for place, token in enumerate(frame.before)]
    after = [tokens[ends + place] == token for place, token in enumerate(frame.after, -len(frame.after))]
    return bool(np.all([*before, *after]))
