"""Targets of a task's rows: sound ones are stored, and any that contradicts its row or its task is refused."""

import numpy as np
import pytest

from rotary_foundry.data.rows import Row, columns, encode_row, row_complaint
from rotary_foundry.data.task_file import Task
from rotary_foundry.utils.errors import DataError

TASKS = {
    "classification": Task("classification", ("bad", "good"), 1.0),
    "regression": Task("regression", (), 1.0),
    "choice": Task("choice", (), 1.0),
    "answer": Task("answer", (), 1.0),
    "entities": Task("entities", ("name", "place"), 1.0),
}
SOUND = {  # for documents of 4, 3 and 5 tokens
    "classification": [(0, 1, 0, 0), (2, 0, 0, 0), (1, 1, 0, 0)],
    "regression": [(0, -0.25, 0, 0), (1, 1e300, 0, 0), (2, 0, 0, 0)],
    "choice": [(0, 3, 2, 0)],
    "answer": [(0, 1, 2, 0), (1, 0, 0, 0), (2, 3, 3, 0)],
    "entities": [(0, 1, 1, 2), (0, 0, 1, 1), (1, -1, 0, 0), (2, 1, 0, 4)],
}


def row(kind: str, targets: list[tuple], **changed) -> Row:
    allowed = np.ones(12, np.uint8) if "allowed" in TASKS[kind].columns else None
    numbers = np.array([4, 3, 5], np.uint32), np.arange(3, dtype=np.uint32)
    made = Row(np.arange(5, 17), *numbers, targets=np.array(targets, np.float64).ravel(), allowed=allowed)
    return made._replace(**changed)


@pytest.mark.parametrize("kind", TASKS)
def test_sound_targets_are_stored_as_they_are(kind):
    dtype = np.dtype(np.uint16)
    sample = encode_row(row(kind, SOUND[kind]), dtype, TASKS[kind])
    assert sample.keys() == columns(dtype, task=TASKS[kind]).keys()
    assert sample["targets"].reshape(-1, 4).tolist() == [list(map(float, target)) for target in SOUND[kind]]
    assert row_complaint(sample, 12, 100, TASKS[kind]) is None


@pytest.mark.parametrize(
    ("kind", "targets", "complaint"),
    [
        ("classification", [(0, 2, 0, 0), (1, 0, 0, 0), (2, 0, 0, 0)], "label 2, and the task's are 0 to 1"),
        ("classification", [(0, 1, 0, 0), (1, 0, 0, 0)], "2 targets, which have to be one for each of its 3 documents"),
        ("classification", [(0, 1, 0, 0), (1, 0, 0, 0), (1, 0, 0, 0)], "3 targets, which have to be one for each"),
        ("classification", [(3, 1, 0, 0)], "a target of document 3, and its documents are 0 to 2"),
        ("classification", [(0, 0.5, 0, 0), (1, 0, 0, 0), (2, 0, 0, 0)], "a target with a fraction"),
        ("regression", [(0, np.nan, 0, 0), (1, 0, 0, 0), (2, 0, 0, 0)], "have to be finite"),
        ("regression", [], "targets of 0 numbers"),
        ("choice", [(0, 3, 3, 0)], "whose right one is not among them"),
        ("choice", [(0, 2, 1, 0)], "questions whose choices are not all of its documents"),
        ("choice", [(0, 2, 1, 0), (1, 2, 1, 0)], "each document once"),
        ("answer", [(0, 1, 4, 0), (1, 0, 0, 0), (2, 0, 0, 0)], "token 1 to 4, outside of its document of 4 tokens"),
        ("answer", [(0, 2, 1, 0), (1, 0, 0, 0), (2, 0, 0, 0)], "token 2 to 1, outside of its document"),
        ("entities", [(0, 2, 1, 1), (1, -1, 0, 0), (2, -1, 0, 0)], "label 2, and the task's are -1 to 1"),
        ("entities", [(0, 1, 1, 1), (2, -1, 0, 0)], "a document without a target"),
        ("classification", [(0, -1, 0, 0), (1, 0, 0, 0), (2, 0, 0, 0)], "label -1, and the task's are 0 to 1"),
        ("entities", [(0, 0, 1, 7), (1, -1, 0, 0), (2, -1, 0, 0)], "token 1 to 7, outside of its document"),
        ("entities", [(0, 1, -1, 1), (1, -1, 0, 0), (2, -1, 0, 0)], "outside of its document"),
    ],
)
def test_a_target_outside_its_document_or_its_task_is_refused(kind, targets, complaint):
    with pytest.raises(DataError, match=complaint):
        encode_row(row(kind, targets), np.dtype(np.uint16), TASKS[kind])


def test_a_span_where_none_may_lie_and_a_missing_column_are_refused():
    task, question = TASKS["answer"], np.array([1, 0, 1, 0] + [1] * 8, np.uint8)
    assert "not allowed" in _complaint(row("answer", SOUND["answer"], allowed=question), task)
    assert "allowed of 11 tokens" in _complaint(row("answer", SOUND["answer"], allowed=np.ones(11, np.uint8)), task)
    sample = encode_row(row("regression", SOUND["regression"]), np.dtype(np.uint16))
    assert row_complaint(sample, 12, 100, task) == "no column 'targets', which rows of kind answer have"


def _complaint(row: Row, task: Task) -> str:
    with pytest.raises(DataError) as refused:
        encode_row(row, np.dtype(np.uint16), task)
    return str(refused.value)
