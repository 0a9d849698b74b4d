"""A task's file is read as it was written, and a wrong one is refused by file and key."""

import json

import pytest

from rotary_foundry.data.task_file import Task
from rotary_foundry.utils.errors import DataError


def test_a_task_is_read_as_it_was_written(tmp_path):
    task = Task("classification", ("好", "bad"), 2.5)
    task.write(tmp_path)
    assert Task.read(tmp_path) == task
    assert json.loads((tmp_path / "task.json").read_text()) == {
        "kind": "classification",
        "labels": ["好", "bad"],
        "weight": 2.5,
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"kind": "ranking", "labels": [], "weight": 1}, "kind: 'ranking' is not known"),
        ({"kind": "classification", "labels": ["one"], "weight": 1}, "labels: .* at least 2, got 1"),
        ({"kind": "entities", "labels": [], "weight": 1}, "labels: .* at least 1, got 0"),
        ({"kind": "masked_lm", "labels": ["one"], "weight": 1}, "labels: .* none, got 1"),
        ({"kind": "entities", "labels": ["one", "one"], "weight": 1}, "labels: 'one' is given twice"),
        ({"kind": "choice", "labels": [], "weight": 0}, "weight: 0 is not positive"),
        ({"kind": "choice", "labels": [], "weight": "1"}, "weight: '1' is not positive"),
        ({"kind": "choice", "labels": []}, "key 'weight' is missing"),
        ([], "broken"),
    ],
)
def test_a_wrong_file_is_refused_by_key(tmp_path, content, message):
    (tmp_path / "task.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"task.json: {message}.*prepare the data again"):
        Task.read(tmp_path)


def test_a_source_without_the_file_is_no_task(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        Task.read(tmp_path)
