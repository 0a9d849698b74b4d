"""Check the targets of a task's rows, which `task_file.py` describes."""

from collections.abc import Mapping

import numpy as np

from rotary_foundry.data.task_file import Task

WIDTH = 4  # numbers per target


def targets_complaint(sample: Mapping[str, np.ndarray], task: Task) -> str | None:
    """Return why a row's targets cannot be those of a task; None if they can.

    Args:
        sample: a row with `lengths`, whose sum is that of its tokens, and the columns of the task's kind.
        task: the task of the row.
    """
    for column in task.columns:
        if column not in sample:
            return f"no column '{column}', which rows of kind {task.kind} have"
    if "targets" not in task.columns:
        return None
    targets = sample["targets"]
    if not len(targets) or len(targets) % WIDTH or not np.isfinite(targets).all():
        return f"targets of {len(targets)} numbers, which have to be finite and {WIDTH} for each target"
    targets = targets.reshape(-1, WIDTH)
    whole = targets[:, [0, 2, 3]] if task.kind == "regression" else targets
    if (whole != np.floor(whole)).any():
        return "a target with a fraction, which only a regression's second number may have"
    allowed = sample.get("allowed")
    if allowed is not None and (len(allowed) != sample["lengths"].sum() or allowed.max(initial=0) > 1):
        return f"allowed of {len(allowed)} tokens, which have to be as many as the row's, each 0 or 1"
    documents = len(sample["lengths"])
    document = targets[:, 0]
    if document.min() < 0 or document.max() >= documents:
        wrong = document[(document < 0) | (document >= documents)][0]
        return f"a target of document {wrong:.0f}, and its documents are 0 to {documents - 1}"
    return _CHECKS[task.kind](targets, sample, task)


def _labels(targets: np.ndarray, sample: Mapping[str, np.ndarray], task: Task) -> str | None:
    return _label_complaint(targets[:, 1], 0, task) or _each_document_once(targets[:, 0], len(sample["lengths"]))


def _numbers(targets: np.ndarray, sample: Mapping[str, np.ndarray], _: Task) -> str | None:
    return _each_document_once(targets[:, 0], len(sample["lengths"]))


def _choices(targets: np.ndarray, sample: Mapping[str, np.ndarray], _: Task) -> str | None:
    first, number, right = targets[np.argsort(targets[:, 0]), :3].T
    ends = first + number
    if number.min() < 2 or (right < 0).any() or (right >= number).any():
        return "a question with fewer than two choices, or whose right one is not among them"
    if first[0] != 0 or (first[1:] != ends[:-1]).any() or ends[-1] != len(sample["lengths"]):
        return "questions whose choices are not all of its documents, each document once"
    return None


def _answers(targets: np.ndarray, sample: Mapping[str, np.ndarray], _: Task) -> str | None:
    complaint = _span_complaint(targets[:, 0], targets[:, 1], targets[:, 2], sample)
    return complaint or _each_document_once(targets[:, 0], len(sample["lengths"]))


def _entities(targets: np.ndarray, sample: Mapping[str, np.ndarray], task: Task) -> str | None:
    if complaint := _label_complaint(targets[:, 1], -1, task):
        return complaint
    there = targets[targets[:, 1] >= 0]
    if len(np.unique(targets[:, 0])) < len(sample["lengths"]):
        return "a document without a target"
    return _span_complaint(there[:, 0], there[:, 2], there[:, 3], sample)


def _label_complaint(labels: np.ndarray, smallest: int, task: Task) -> str | None:
    wrong = labels[(labels < smallest) | (labels >= len(task.labels))]
    return f"label {wrong[0]:.0f}, and the task's are {smallest} to {len(task.labels) - 1}" if len(wrong) else None


def _each_document_once(document: np.ndarray, documents: int) -> str | None:
    if len(document) != documents or len(np.unique(document)) != documents:
        return f"{len(document)} targets, which have to be one for each of its {documents} documents"
    return None


def _span_complaint(
    document: np.ndarray, first: np.ndarray, last: np.ndarray, sample: Mapping[str, np.ndarray]
) -> str | None:
    lengths = sample["lengths"].astype(np.int64)
    document, first, last = (numbers.astype(np.int64) for numbers in (document, first, last))
    outside = (first < 0) | (last < first) | (last >= lengths[document])
    if outside.any():
        wrong = int(np.argmax(outside))
        return (
            f"a span from token {first[wrong]} to {last[wrong]}, outside of its document of "
            f"{lengths[document[wrong]]} tokens"
        )
    starts = (lengths.cumsum() - lengths)[document]
    if not (sample["allowed"][starts + first] & sample["allowed"][starts + last]).all():
        return "a span at a token that is not allowed"
    return None


_CHECKS = {
    "classification": _labels,
    "regression": _numbers,
    "choice": _choices,
    "answer": _answers,
    "entities": _entities,
}
