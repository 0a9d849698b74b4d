"""Encode the examples of a labelled task and write them as rows, in which none is cut.

`span_encoding.py` encodes choices, answers and entities, as for fine-tuning. A text, or a pair, is one document with
[CLS] before it and [SEP] after each part. If it has more than max_seq_len tokens, its longest part loses the last ones;
a passage is divided into windows instead. All choices of a question are in one row, so each of them has at most its
share of the shortest row.

Examples are shuffled, always into the same order, because files are often sorted by label.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rotary_foundry.data.fast_tokenizer import open_fast
from rotary_foundry.data.packing import whole_rows
from rotary_foundry.data.rows import FRAME, Row, token_dtype
from rotary_foundry.data.special_tokens import spelled
from rotary_foundry.data.target_context import count_longer
from rotary_foundry.data.task_file import Task
from rotary_foundry.data_prep.encoding import CorpusTokenizer
from rotary_foundry.data_prep.labelled.examples import texts_of
from rotary_foundry.data_prep.labelled.labelled_example import Example
from rotary_foundry.data_prep.labelled.labels import Labels, as_number
from rotary_foundry.data_prep.labelled.span_encoding import (
    PartsTokenizer,
    encode_answers,
    encode_choices,
    encode_entities,
)
from rotary_foundry.data_prep.statistics import TaskCounts, TaskStatistics, rows_and_fill
from rotary_foundry.data_prep.task_config import TEXT, TaskConfig
from rotary_foundry.data_prep.task_examples import is_held_out, read_held_out, read_task
from rotary_foundry.data_prep.work import SPLITS, Work
from rotary_foundry.data_prep.writing import DocumentTable, StoredShards
from rotary_foundry.utils.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LABELLED = "labelled"  # in the work folder: counts of what each labelled task wrote


class Unit(NamedTuple):
    """Documents that are put into the same row: a text, a window, or the choices of a question."""

    documents: list[np.ndarray]  # the tokens of each, uint32 [tokens]
    targets: np.ndarray  # float64 [targets, 4]; document 0 is the first of `documents`
    allowed: np.ndarray | None  # uint8 [tokens], of the only document
    number: int  # of the example

    @property
    def tokens(self) -> int:
        return sum(map(len, self.documents))


class Encoded(NamedTuple):
    """An example as units."""

    units: list[Unit]
    cut: bool  # whether it was cut
    unmatched: int = 0  # entities that begin or end within a token


class Encoder:
    """Encodes the examples of a task.

    Args:
        task: its configuration.
        labels: its labels and their numbers.
        tokenizer: the corpus' own tokenizer.
        shortest: the shortest row length, in tokens.
    """

    def __init__(self, task: TaskConfig, labels: Labels, tokenizer: "PreTrainedTokenizerBase", shortest: int):
        self.task, self.labels, self.shortest = task, labels, shortest
        self._parts = PartsTokenizer(tokenizer, task.max_seq_len or shortest)

    def __call__(self, example: Example, number: int) -> Encoded:
        """Encode an example; its units keep `number`.

        Raises:
            DataError: a label or a kind is unknown, or nothing is left of a text; it names the row.
        """
        unmatched = 0
        match self.task.kind:
            case "choice":
                return self._choices(example, number)
            case "answer":
                columns, long = encode_answers([example], self._parts, training=True)
                targets = [[[0, first, last, 0]] for first, last in columns["labels"]]
            case "entities":
                columns, long = encode_entities([example], self.labels.names, self._parts)
                targets = [[[0, *entity] for entity in columns["labels"][0]] or [[0, -1, 0, 0]]]
                kept = max(end for _, end in columns["offsets"][0])  # characters
                unmatched = sum(end <= kept for *_, end in columns["entities"][0]) - len(columns["labels"][0])
            case _:
                return self._text(example, number)
        units = zip(columns["input_ids"], targets, columns["allowed"], strict=True)
        units = [_unit([ids], target, number, allowed) for ids, target, allowed in units]
        return Encoded(units, bool(long), unmatched)

    def _choices(self, example: Example, number: int) -> Encoded:
        choices = len(example.text.choices)
        parts = self._parts.limited(min(self._parts.limit, self.shortest // choices))
        columns, long = encode_choices([example], parts)
        return Encoded([_unit(columns["input_ids"][0], [[0, choices, example.label, 0]], number)], bool(long))

    def _text(self, example: Example, number: int) -> Encoded:
        texts = [self._parts(text)[0] for text in texts_of(self.task.data, example)]
        over = sum(map(len, texts)) - (self._parts.limit - 1 - len(texts))
        for _ in range(over):
            max(texts, key=len).pop()
        regression = self.task.kind == "regression"
        label = (as_number if regression else self.labels.number)(example.label, example.where)
        return Encoded([_unit([self._parts.join(*texts)], [[0, label, 0, 0]], number)], over > 0)


def _unit(documents: Sequence[Sequence[int]], targets: Sequence, number: int, allowed: Sequence | None = None) -> Unit:
    return Unit(
        [np.array(document, np.uint32) for document in documents],
        np.array(targets, np.float64),
        None if allowed is None else np.array(allowed, np.uint8),
        number,
    )


def row_of(units: Sequence[Unit]) -> Row:
    """Make a row of units, in their order."""
    documents = [document for unit in units for document in unit.documents]
    targets, first = [], 0
    for unit in units:
        targets.append(np.add(unit.targets, [first, 0, 0, 0]))
        first += len(unit.documents)
    return Row(
        np.concatenate(documents),
        np.array([len(document) for document in documents], np.uint32),
        np.array([unit.number for unit in units for _ in unit.documents], np.uint32),
        targets=np.concatenate(targets).ravel(),
        allowed=None if units[0].allowed is None else np.concatenate([unit.allowed for unit in units]),
    )


def write_task(work: Work, rank: int) -> None:
    """Encode and write the labelled task `rank`, and write its counts to the work folder.

    Raises:
        DataError: the data are invalid, all training examples are held out, or one is too long with
            `long_documents: refuse`; it names the file and row.
    """
    name, task = list(work.config.labelled.items())[rank]
    splits, labels = read_task(name, task, work.config.validation)
    held_out = read_held_out(work)
    kept = [example for example in splits["train"] if not is_held_out(task, example, held_out)]
    dropped = len(splits["train"]) - len(kept)
    if not kept:
        raise DataError(f"tasks.{name}: the texts of all its {dropped:,} training examples are held out by a task")
    tokenizer = open_fast(work.whole / "tokenizer")
    special = spelled(tokenizer.backend_tokenizer, tokenizer.all_special_tokens)
    encode = Encoder(task, labels, tokenizer, min(work.config.row_lengths))
    known = Task(task.kind, tuple(labels.names), task.weight)
    parts, counts = [], {}
    for split, examples in (("train", kept), ("validation", splits["validation"])):
        units, cut, unmatched = _encoded(name, encode, examples)
        _write_table(work, name, split, task, examples, units)
        rows = {
            str(length): _write_rows(work, f"{name}/{length}/{split}", known, units, length)
            for length in work.config.row_lengths
        }
        parts.append({"source": name, "number": 0, "split": split, "rows": rows})
        counted = _counts(known, len(examples), units, cut, unmatched, parts[-1])
        texts = (text for example in examples for text in _all_texts(task, example))
        counted.special_tokens = sum(len(special.findall(text)) for text in texts)
        counts[split] = asdict(counted)
    work.write_json(LABELLED, rank, {"labels": labels.names, "parts": parts, "dropped": dropped, "counts": counts})


def _encoded(name: str, encode: Encoder, examples: Sequence[Example]) -> tuple[list[Unit], list[str], list[str]]:
    """Return the units of all examples, the places of those that were cut, and a place for each unmatched entity."""
    units, cut, unmatched = [], [], []
    for number, example in enumerate(examples):
        encoded = encode(example, number)
        units += encoded.units
        unmatched += [example.where] * encoded.unmatched
        if encoded.cut:
            cut.append(example.where)
            if encode.task.long_documents == "refuse":
                raise DataError(
                    f"{example.where}: over the tokens that tasks.{name}.max_seq_len or a row allows; shorten it, "
                    "raise max_seq_len, or take long_documents: truncate"
                )
    return units, cut, unmatched


def _write_rows(work: Work, folder: str, task: Task, units: Sequence[Unit], row_length: int) -> dict:
    """Write the rows of a split, and return their counts in the same form as for texts."""
    vocab_size = CorpusTokenizer(work.whole / "tokenizer").vocab_size
    writer = StoredShards(work, f"{folder}/{0:05d}", token_dtype(vocab_size), task=task)
    counts = {"rows": 0, "documents": 0, "tokens": 0}
    longer = count_longer(np.zeros(0), row_length)
    order = np.random.default_rng(0).permutation(len(units))
    for chosen in whole_rows((units[index].tokens for index in order), row_length):
        row = row_of([units[order[index]] for index in chosen])
        writer.write(row)
        counts["rows"] += 1
        counts["documents"] += len(row.lengths)
        counts["tokens"] += len(row.tokens)
        longer += count_longer(row.lengths, row_length)
    writer.finish()
    return counts | {"longer": longer.tolist()}


def _write_table(
    work: Work, name: str, split: str, task: TaskConfig, examples: Sequence[Example], units: Sequence[Unit]
) -> None:
    """Write the table of examples: an id is a place in the data, and tokens are those of all windows or choices."""
    tokens = np.zeros(len(examples), np.int64)
    for unit in units:
        tokens[unit.number] += unit.tokens - FRAME.slots * len(unit.documents)
    table = DocumentTable(work.whole / name / "documents" / split / f"{0:05d}.parquet")
    sizes = [sum(len(text.encode()) for text in _all_texts(task, example)) for example in examples]
    table.add([example.where for example in examples], np.array(sizes), tokens)
    table.close()


def _all_texts(task: TaskConfig, example: Example) -> Iterator[str]:
    if task.kind == "choice":
        return (text for side in example.text for text in side)
    return iter(texts_of(task.data, example))


def _counts(
    task: Task, examples: int, units: Sequence[Unit], cut: Sequence[str], unmatched: Sequence[str], part: dict
) -> TaskCounts:
    lengths = np.array([len(document) for unit in units for document in unit.documents])
    rows = {length: rows_and_fill([part], int(length)) for length in part["rows"]}
    return TaskCounts(
        examples,
        documents=len(lengths),
        tokens=int(lengths.sum()),
        lengths=np.quantile(lengths, [0, 0.5, 0.95, 1], method="lower").tolist(),
        labels=label_counts(task, np.concatenate([unit.targets for unit in units])),
        truncated=len(cut),
        first_truncated=cut[0] if cut else None,
        rows={length: number for length, (number, _) in rows.items()},
        fill={length: fill for length, (_, fill) in rows.items()},
        unmatched=len(unmatched),
        first_unmatched=unmatched[0] if unmatched else None,
    )


def label_counts(task: Task, targets: np.ndarray) -> dict[str, float]:
    """Count targets, float64 `[targets, 4]`, per label; for a regression, return the least, mean and largest number."""
    values = targets[:, 1]
    if task.kind == "regression":
        return {"least": float(values.min()), "mean": float(values.mean()), "largest": float(values.max())}
    if task.kind == "answer":
        unanswered = int((targets[:, 2] == 0).sum())
        return {"answer": len(targets) - unanswered, "none": unanswered}
    if task.kind == "choice":
        return {f"choice {right}": int(number) for right, number in enumerate(np.bincount(targets[:, 2].astype(int)))}
    counts = {label: int((values == number).sum()) for number, label in enumerate(task.labels)}
    return counts | ({"none": int((values == -1).sum())} if task.kind == "entities" else {})


def finish_tasks(work: Work) -> dict[str, TaskStatistics]:
    """Write task.json of every task, and return the statistics of those with labelled examples."""
    statistics = {}
    written = dict(zip(work.config.labelled, work.read_json(LABELLED), strict=True))
    for name, task in work.config.tasks.items():
        labels = () if task.kind == TEXT else tuple(written[name]["labels"])
        Task(task.kind, labels, task.weight).write(work.whole / name)
        if task.kind != TEXT:
            counts = {split: TaskCounts(**written[name]["counts"][split]) for split in SPLITS}
            statistics[name] = TaskStatistics(task.kind, task.weight, written[name]["dropped"], **counts)
    return statistics
