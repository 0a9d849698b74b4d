"""Which point of a grid is best, and the table over models."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from rotary_foundry.finetuning.leaderboard import best_point, point_name, print_leaderboard, summarise
from rotary_foundry.utils.errors import ConfigurationError, DataError

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
    assert best_point(folder, POINTS[2:], [1, 2]) == POINTS[2]  # the only one there is
    assert best_point(folder, POINTS[2:], [2]) is None


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("result.json", "{", r"result\.json: cannot be read"),
        ("result.json", "[]", r"result\.json: cannot be read: expected a JSON object, got list"),
        ("result.json", '{"metrics": {}}', r"result\.json: 'score' is damaged: None"),
        ("result.json", '{"score": "0.9", "metrics": {}}', r"result\.json: 'score' is damaged: '0\.9'"),
        ("job.json", "{}", r"job\.json: 'seed' is damaged: None"),
    ],
)
def test_a_damaged_job_is_named_with_what_to_remove(folder, name, content, said):
    job = folder / point_name(POINTS[0]) / "seed-1"
    (job / name).write_text(content)
    with pytest.raises(DataError, match=said) as raised:
        best_point(folder, POINTS, [1, 2])
    assert str(raised.value).endswith(f"; remove {job}, and the same `finetune` runs the job again")


def test_a_summary_has_mean_and_deviation_of_each_metric_and_the_best_model(folder):
    summary = summarise(folder, POINTS[1], 3, [1, 2])
    assert summary["metrics"]["accuracy"]["mean"] == pytest.approx(0.75)
    assert summary["metrics"]["f1"]["deviation"] == pytest.approx(0.05 / 2**0.5)
    assert summary["model"] == str(folder / point_name(POINTS[1]) / "seed-2/model")


def test_a_seed_that_diverged_is_counted_and_not_averaged(folder):
    summary = summarise(folder, POINTS[2], 3, [1, 2])
    assert summary["scores"] == {"1": 0.95, "2": None}
    assert summary["metrics"]["accuracy"] == {"mean": 0.95, "deviation": None}


def write_results(path: Path, scores: dict[str, dict[str, float]]) -> None:
    """A search's results, by task and metric; the first metric chose the model."""
    path.mkdir()
    entries = [
        {
            **{"task": task, "base_model": path.name, "metric": next(iter(metrics))},
            "metrics": {metric: {"mean": score, "deviation": 0.01} for metric, score in metrics.items()},
        }
        for task, metrics in scores.items()
    ]
    (path / "results.json").write_text(json.dumps(entries))


def printed_leaderboard(folder: Path) -> list[str]:
    console = Console(file=io.StringIO(), width=100)
    print_leaderboard([folder], console)
    return console.file.getvalue().splitlines()


def test_a_leaderboard_has_the_best_model_first(tmp_path):
    write_results(tmp_path / "worse", {"rte": {"accuracy": 0.6}, "cola": {"accuracy": 0.3}})
    write_results(tmp_path / "better", {"rte": {"accuracy": 0.7}, "cola": {"accuracy": 0.4}})
    write_results(tmp_path / "part", {"rte": {"accuracy": 1}})
    rows = [line.split() for line in printed_leaderboard(tmp_path) if "±" in line]
    assert [row[0] for row in rows] == ["better", "worse", "part"]
    assert rows[0] == ["better", "0.5500", "0.7000", "±", "0.0100", "0.4000", "±", "0.0100"]


def test_a_task_whose_models_were_chosen_by_different_metrics_has_a_column_for_each(tmp_path):
    write_results(tmp_path / "a", {"mine": {"accuracy": 0.9}, "rte": {"accuracy": 0.5}})
    write_results(tmp_path / "b", {"mine": {"macro_f1": 0.6, "accuracy": 0.8}, "rte": {"accuracy": 0.4}})
    lines = printed_leaderboard(tmp_path)
    assert [line.split() for line in lines if "mine" in line] == [["mine", "mine", "rte"]]
    assert [line.split() for line in lines if "mean" in line] == [["model", "mean", "accuracy", "macro_f1", "accuracy"]]
    rows = [" ".join(line.split()) for line in lines if "±" in line]
    assert rows == ["b 0.6000 0.8000 ± 0.0100 0.6000 ± 0.0100 0.4000 ± 0.0100", "a 0.9000 ± 0.0100 0.5000 ± 0.0100"]


@pytest.mark.parametrize(
    "content", ["", "[{", "{}", "[]", "3", "[3]", '["a"]', '{"task": "rte"}', '[{"task": "rte"}]', "[{}]", "\xff"]
)
def test_broken_results_are_named_with_what_makes_them_anew(tmp_path, content):
    (tmp_path / "results.json").write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match=r"/results\.json: damaged .*; remove it, and the same"):
        print_leaderboard([tmp_path])


def test_a_leaderboard_of_nothing_says_what_it_wants(tmp_path):
    with pytest.raises(ConfigurationError, match=r"no results\.json found"):
        print_leaderboard([tmp_path])
