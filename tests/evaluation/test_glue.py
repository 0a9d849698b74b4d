"""The suite of fine-tuning, on a tiny encoder and two small tasks."""

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from scipy.stats import t

from rotary_foundry.evaluation import glue
from rotary_foundry.evaluation.compare import write_comparison
from rotary_foundry.evaluation.results import Measure, Result

COMMAND = str(Path(sys.executable).parent / "rotary-foundry")
RESULT = {
    "task": "mine",
    "metric": "accuracy",
    "metrics": {"accuracy": {"mean": 0.8, "deviation": 0.1}, "f1": {"mean": 0.7, "deviation": None}},
    "scores": {"1": 0.7, "2": 0.8, "3": 0.9},
    "examples": {"train": 1200, "validation": 300},
    "truncated": {"train": 3, "validation": 0},
    "max_seq_len": 128,
}


def made_of(results: list[dict], monkeypatch, tmp_path) -> tuple[Result, list]:
    """What the suite makes of a search that ended so, and how it asked for it."""
    (tmp_path / "config.json").write_text("{}")
    asked = []
    monkeypatch.setattr(
        "rotary_foundry.finetuning.search.finetune",
        lambda path, overrides: asked.append((path, overrides)) or results,
    )
    result = glue.run(tmp_path, glue.Config(suite="glue", finetune="a.yaml", task=["mine"], out=str(tmp_path / "out")))
    result.model = {"name": "m"}
    return result, asked


@pytest.fixture
def found(monkeypatch, tmp_path) -> Result:
    result, asked = made_of([RESULT], monkeypatch, tmp_path)
    assert asked == [
        ("a.yaml", [f"model={tmp_path}", f"out={tmp_path}/out/{tmp_path.name}/glue/finetune", 'task=["mine"]'])
    ]
    return result


def test_the_interval_of_a_mean_is_students_over_the_seeds_and_one_seed_has_none(found):
    (row,) = found.rows
    reach = t.ppf(0.975, 2) * 0.1 / 3**0.5
    assert row.measures["accuracy"] == Measure(0.8, pytest.approx(0.8 - reach), pytest.approx(0.8 + reach))
    assert row.measures["f1"] == Measure(0.7)
    assert row.labels == {"task": "mine", "train": 1200, "validation": 300, "seeds": 3}


def test_what_was_cut_is_told_and_models_are_compared_by_the_first_metric(found):
    assert found.notes == ["mine: 3 of 1,200 texts of train were cut to 128 tokens"]
    assert [headline.name for headline in found.headlines] == ["mine accuracy"]


def test_the_mean_of_tasks_has_students_interval_over_the_means_of_each_seed(monkeypatch, tmp_path):
    other = RESULT | {"task": "other", "scores": {"3": 0.6, "2": 0.5, "1": 0.7}}
    other["metrics"] = {"accuracy": {"mean": 0.6, "deviation": 0.1}}
    result, _ = made_of([RESULT, other], monkeypatch, tmp_path)
    reach = t.ppf(0.975, 2) * 0.05 / 3**0.5  # of 0.7, 0.65 and 0.75
    assert result.headlines[-1].name == "mean of tasks"
    assert result.headlines[-1].measure == Measure(*(pytest.approx(0.7 + by) for by in (0, -reach, reach)))


def test_models_are_compared_though_no_documents_are_there_to_draw(found, tmp_path, capsys):
    found.model = {"name": "m", "path": "m"}
    other = replace(found, model={"name": "n", "path": "n"}, config={"finetune": "a.yaml"})
    write_comparison([found, other], tmp_path / "compared", Console())
    assert "mine accuracy" in capsys.readouterr().out
    assert (tmp_path / "compared/glue.png").is_file()


def test_a_seed_that_diverged_is_told_and_counts_in_no_interval(monkeypatch, tmp_path):
    lost = RESULT | {"task": "lost", "scores": {"1": 0.7, "2": 0.9, "3": None}}
    lost["metrics"] = {"accuracy": {"mean": 0.8, "deviation": 0.02**0.5}}
    result, _ = made_of([RESULT, lost], monkeypatch, tmp_path)
    assert result.rows[1].labels["seeds"] == 2
    assert result.rows[1].measures["accuracy"].high == pytest.approx(0.8 + t.ppf(0.975, 1) * 0.1)
    assert result.headlines[-1].measure == Measure(pytest.approx(0.8))  # no two tasks' seeds to pair
    assert result.notes[0] == "lost: seed 3 diverged, and is left out"


@pytest.mark.long
def test_a_model_is_fine_tuned_and_a_second_call_runs_nothing_again(model_of, tmp_path):
    for split, count in (("train", 40), ("validation", 20)):
        with open(tmp_path / f"{split}.csv", "w", newline="") as file:
            csv.writer(file).writerows([["text", "label"], *([f"def f{n}(): pass", n % 2] for n in range(count))])
    (tmp_path / "my.yaml").write_text(
        "search: {lr: [1e-3], weight_decay: [0], max_duration: [1ep], global_train_batch_size: [8]}\n"
        "seeds: [1, 2]\nt_warmup: 0.1dur\ntasks:\n  mine:\n"
        f"    data: {{train: {tmp_path}/train.csv, validation: [{tmp_path}/validation.csv]}}\n"
    )
    command = [
        COMMAND,
        "evaluate",
        model_of("modernbert"),
        "glue",
        f"finetune={tmp_path}/my.yaml",
        f"out={tmp_path}/out",
    ]
    first, again = (subprocess.run(command, capture_output=True, text=True, timeout=280) for _ in range(2))
    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    assert "seed-1" in first.stdout
    assert "seed-1" not in again.stdout
    (written,) = (tmp_path / "out").rglob("glue/result.json")
    (row,) = json.loads(written.read_text())["rows"]
    assert row["labels"] == {"task": "mine", "train": 40, "validation": 20, "seeds": 2}
    assert 0 <= row["measures"]["accuracy"]["value"] <= 1
