"""A corpus of six small tasks, one of each kind, in the layout that `python data_prep` writes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from streaming import MDSWriter

from rotary_foundry.data.rows import SHARD_HASH, Manifest, fingerprint
from rotary_foundry.data.task_file import Task
from rotary_foundry.data_prep.tokenizer import save_trained, train_tokenizer
from tests.data_prep.inspection.tree import WORDS

ROW_LENGTH = 64
VOCABULARY = 343
ROWS = {"train": 40, "validation": 7}
TASKS = {
    "text": Task("masked_lm", (), 2.0),
    "topic": Task("classification", ("even", "odd", "never"), 2.0),
    "score": Task("regression", (), 1.0),
    "pick": Task("choice", (), 1.0),
    "find": Task("answer", (), 1.0),
    "names": Task("entities", ("a", "b"), 1.0),
}


def write_tasks(root: Path, tasks: dict[str, Task] = TASKS, row_lengths: Sequence[int] = (ROW_LENGTH,)) -> None:
    """Write rows of several short documents for each task, the same for each row length.

    What is right follows from a document's first token.
    """
    save_trained(train_tokenizer(WORDS * 50, VOCABULARY, False), root / "tokenizer", ROW_LENGTH, False)
    made = fingerprint(root / "tokenizer")
    for number, (name, task) in enumerate(tasks.items()):
        for row_length in row_lengths:
            for split, count in ROWS.items():
                generator = np.random.default_rng((number, len(split)))
                rows = [make_row(task, generator) for _ in range(count)]
                _write_rows(root / name / str(row_length) / split, task, rows, row_length, made)
        task.write(root / name)


def _write_rows(folder: Path, task: Task, rows: list[dict[str, np.ndarray]], row_length: int, tokenizer: str) -> None:
    columns = {"tokens": "ndarray:uint16", "lengths": "ndarray:uint32", "documents": "ndarray:uint32"}
    columns |= {"targets": "ndarray:float64"} if "targets" in task.columns else {}
    columns |= {"allowed": "ndarray:uint8"} if "allowed" in task.columns else {}
    with MDSWriter(out=str(folder), columns=columns, hashes=[SHARD_HASH], size_limit=3000) as writer:
        for row in rows:
            writer.write({column: row[column] for column in columns})
    documents, tokens = (sum(len(row[column]) for row in rows) for column in ("lengths", "tokens"))
    fill = tokens / (len(rows) * row_length)
    name, split = folder.parts[-3], folder.name
    Manifest(name, split, row_length, len(rows), documents, tokens, fill, tokenizer).write(folder)


def make_row(task: Task, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Make a row of a task: up to five documents of at most 13 tokens."""
    fewest = 4 if task.kind == "choice" else 3  # two questions of two choices
    lengths = generator.integers(6, 14, generator.integers(fewest, 6))
    documents = [np.r_[1, generator.integers(5, VOCABULARY, length - 2), 2] for length in lengths]
    targets = []
    for number, document in enumerate(documents):
        first, last = int(document[1]), len(document) - 2
        if task.kind == "classification":
            targets.append((number, first % 2, 0, 0))
        elif task.kind == "regression":
            targets.append((number, first / VOCABULARY, 0, 0))
        elif task.kind == "answer":
            targets.append((number, 1 + first % 3, last, 0) if first % 4 else (number, 0, 0, 0))
        elif task.kind == "entities":
            found = [(number, 0, 1, 2), (number, 1, last, last)] if first % 3 else [(number, -1, 0, 0)]
            targets += found
    if task.kind == "choice":
        half = len(documents) // 2
        targets = [(0, half, int(documents[0][1]) % half, 0), (half, len(documents) - half, 0, 0)]
    return {
        "tokens": np.concatenate(documents).astype(np.uint16),
        "lengths": lengths.astype(np.uint32),
        "documents": np.arange(len(documents), dtype=np.uint32),
        "targets": np.array(targets, np.float64).ravel(),
        "allowed": np.concatenate([np.r_[1, np.ones(len(one) - 2), 0] for one in documents]).astype(np.uint8),
    }
