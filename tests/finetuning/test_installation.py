"""Offline tasks: both labels, real text, and modules that are in one split only."""

import json
from collections import Counter

from encoder_foundry.finetuning.installation import write_tasks


def test_tasks_of_the_installation_have_their_labels_and_disjoint_modules(tmp_path):
    write_tasks(tmp_path, 400)
    rows = {
        (task, split): [json.loads(line) for line in (tmp_path / task / f"{split}.jsonl").read_text().splitlines()]
        for task in ("package", "belongs")
        for split in ("train", "validation")
    }
    assert sum(len(rows["package", split]) for split in ("train", "validation")) == 400
    for split in ("train", "validation"):
        answers = Counter(row["label"] for row in rows["belongs", split])
        assert 0.4 < answers["yes"] / answers.total() < 0.6
    functions = {split: {row["function"] for row in rows["belongs", split]} for split in ("train", "validation")}
    assert len(functions["train"] & functions["validation"]) <= 2  # copied from one package to another
    assert {"python", "torch", "sympy"} <= {row["label"] for row in rows["package", "train"]}


def test_they_are_the_same_every_time(tmp_path):
    for name in ("first", "second"):
        write_tasks(tmp_path / name, 50)
    for path in (tmp_path / "first").rglob("*.jsonl"):
        assert path.read_text() == (tmp_path / "second" / path.relative_to(tmp_path / "first")).read_text()
