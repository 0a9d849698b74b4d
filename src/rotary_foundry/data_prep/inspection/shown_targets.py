"""Describe the targets of a labelled row in words."""

from collections.abc import Sequence

import numpy as np

from rotary_foundry.data.rows import decode_row
from rotary_foundry.data.targets import WIDTH, targets_complaint
from rotary_foundry.data.task_file import Task
from rotary_foundry.data_prep.inspection.shard_folder import ShardFolder
from rotary_foundry.data_prep.inspection.source_folders import Texts
from rotary_foundry.utils.errors import DataError


def targets_in_words(folder: ShardFolder, sample: dict) -> list[tuple[str, ...]]:
    """Return the targets of each document of a row, such as "label positive" or "person 叶老桂, tokens 10 to 12".

    Args:
        folder: the folder of the row; `task.json` lies two levels above it.
        sample: the row, with the column `targets`.

    Raises:
        DataError: the task's file is missing or broken, or the targets do not fit the task.
    """
    task = Task.read(folder.path.parents[1])
    if complaint := targets_complaint(sample, task):
        raise DataError(f"{folder.path}: a row has {complaint}; prepare the data again with `python data_prep CONFIG`")
    documents, texts = decode_row(sample), Texts(folder.tokenizer_folder)
    words: list[list[str]] = [[] for _ in documents]
    for target in sample["targets"].reshape(-1, WIDTH):
        for place, said in _words(task, target, documents, texts):
            words[place].append(said)
    return list(map(tuple, words))


def _words(task: Task, target: np.ndarray, documents: Sequence[np.ndarray], texts: Texts) -> list[tuple[int, str]]:
    """Return places of documents in the row, and what a target says about each."""
    place, (a, b, c) = int(target[0]), target[1:].tolist()

    def span(first: float, last: float) -> str:
        tokens = np.pad(documents[place][int(first) : int(last) + 1], 1)  # `decode` leaves out a token at each end
        return f"{texts.decode([tokens])[0]}, tokens {first:.0f} to {last:.0f}"

    match task.kind:
        case "classification":
            said = f"label {task.labels[int(a)]}"
        case "regression":
            said = f"number {a:g}"
        case "choice":
            return [(place + n, f"choice {n + 1} of {a:.0f}{', the right one' * (n == b)}") for n in range(int(a))]
        case "answer":
            said = f"answer {span(a, b)}" if b else "no answer here"
        case _:
            said = f"{task.labels[int(a)]} {span(b, c)}" if a >= 0 else "no entity"
    return [(place, said)]
