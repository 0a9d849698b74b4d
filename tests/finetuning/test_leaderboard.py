"""Which point of a grid is best, and the table over models."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from encoder_foundry.errors import ConfigurationError
from encoder_foundry.finetuning.leaderboard import best_point, point_name, print_leaderboard, summarise

POINTS = [
    {"lr": lr, "weight_decay": 1e-6, "max_duration": "1ep", "global_train_batch_size": 16} for lr in (1e-5, 3e-5, 8e-5)
]


def write_job(folder: Path, point: dict, seed: int, score: float | None) -> None:
    path = folder / point_name(point) / f"seed-{seed}"
    path.mkdir(parents=True)
    job = {"task": "rte", "base_model": "m", "init_from_task": None, "labels": [], "examples": {}, "truncated": {}}
    (path / "job.json").write_text(json.dumps(job | point | {"seed": seed, "max_seq_len": 9}))
    metrics = {} if score is None else {"accuracy": score, "f1": score / 2}
    result = {"score": score, "metrics": metrics, "device": "cpu", "versions": {}}
    (path / "result.json").write_text(json.dumps(result))


@pytest.fixture
def folder(tmp_path) -> Path:
    """The first point has the highest score and the lower mean, the last one diverged with one seed."""
    for point, scores in zip(POINTS, ((0.9, 0.5), (0.7, 0.8), (0.95, None)), strict=True):
        for seed, score in enumerate(scores, 1):
            write_job(tmp_path, point, seed, score)
    return tmp_path


def test_the_best_point_has_the_highest_mean_over_all_seeds(folder):
    assert best_point(folder, POINTS, [1, 2]) == POINTS[1]
    assert best_point(folder, POINTS, [1]) == POINTS[2]
    assert best_point(folder, POINTS[:1], [1, 2]) == POINTS[0]
    assert best_point(folder, POINTS[2:], [2]) is None


def test_a_summary_has_mean_and_deviation_of_each_metric_and_the_best_model(folder):
    summary = summarise(folder, POINTS[1], 3, [1, 2])
    assert summary["metrics"]["accuracy"]["mean"] == pytest.approx(0.75)
    assert summary["metrics"]["f1"]["deviation"] == pytest.approx(0.05 / 2**0.5)
    assert summary["model"] == str(folder / point_name(POINTS[1]) / "seed-2/model")


def test_a_seed_that_diverged_is_counted_and_not_averaged(folder):
    summary = summarise(folder, POINTS[2], 3, [1, 2])
    assert summary["scores"] == {"1": 0.95, "2": None}
    assert summary["metrics"]["accuracy"] == {"mean": 0.95, "deviation": None}


def test_a_leaderboard_has_the_best_model_first(folder, tmp_path):
    for name, scores in (
        ("worse", {"rte": 0.6, "cola": 0.3}),
        ("better", {"rte": 0.7, "cola": 0.4}),
        ("part", {"rte": 1}),
    ):
        (tmp_path / name).mkdir()
        entries = [
            {
                **{"task": task, "base_model": name, "metric": "accuracy"},
                "metrics": {"accuracy": {"mean": score, "deviation": 0.01}},
            }
            for task, score in scores.items()
        ]
        (tmp_path / name / "results.json").write_text(json.dumps(entries))
    console = Console(file=io.StringIO(), width=100)
    print_leaderboard([tmp_path], console)
    lines = console.file.getvalue().splitlines()
    rows = [line.split() for line in lines if "±" in line]
    assert [row[0] for row in rows] == ["better", "worse", "part"]
    assert rows[0] == ["better", "0.5500", "0.7000", "±", "0.0100", "0.4000", "±", "0.0100"]


def test_a_leaderboard_of_nothing_says_what_it_wants(tmp_path):
    with pytest.raises(ConfigurationError, match=r"no results\.json there"):
        print_leaderboard([tmp_path])
