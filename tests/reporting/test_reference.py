"""What several seeds of a recipe have in common, behind a run of it."""

import json
from pathlib import Path

import numpy as np
import pytest

from rotary_foundry.reporting.charts import make_charts
from rotary_foundry.reporting.records import Run
from rotary_foundry.reporting.reference import WINDOW, find_reference, write_reference
from rotary_foundry.reporting.report_page import write_report
from rotary_foundry.utils.errors import ConfigurationError, DataError
from tests.command import rotary_foundry
from tests.reporting.made_run import write_run

NANO, LARGE = "yamls/main/nano.yaml", "yamls/main/large.yaml"
OTHER = "stages.pretrain.lr=2e-3"


@pytest.fixture(scope="module")
def seeds(tmp_path_factory) -> list[Path]:
    """Three runs of another recipe than nano, of which a reference is known."""
    folder = tmp_path_factory.mktemp("seeds")
    return [write_run(folder / f"s{seed}", NANO, OTHER, f"seed={seed}", f"run_name=s{seed}") for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def written(seeds) -> Path:
    out = seeds[0].parent / "reference.json"
    done = rotary_foundry("reference", *seeds, "--out", out)
    assert (done.stdout, done.stderr, done.returncode) == (f"reference: {out}\n", "", 0)
    return out


def losses(run: Path) -> np.ndarray:
    return np.array([json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()])


def test_the_band_is_of_all_seeds_updates_near_by_and_of_no_other_stage(seeds, written):
    content, update = json.loads(written.read_text()), 100
    near = np.array([losses(run) for run in seeds])[:, update - WINDOW : update + WINDOW + 1]
    assert content["loss"]["low"][update] == pytest.approx(near.min(), rel=1e-3)
    assert content["loss"]["mean"][update] == pytest.approx(near.mean(), rel=1e-3)
    first_stage = [one for one in Run(seeds[0]).plan["segments"] if one["stage"] == "pretrain"]
    last = sum(segment["updates"] for segment in first_stage) - 1
    before = np.array([losses(run) for run in seeds])[:, last - WINDOW : last + 1]
    assert content["loss"]["high"][last] == pytest.approx(before.max(), rel=1e-3)
    assert content["seeds"] == [1, 2, 3]
    assert [line["stage"] for line in content["held_out"]] == ["pretrain", "extend", "decay"]
    assert [len(line["loss"]) for line in content["held_out"]] == [3, 3, 3]


def test_it_lies_behind_a_run_of_the_same_recipe_on_the_page_and_in_the_pictures(seeds, written, tmp_path):
    run = write_run(tmp_path / "mine", NANO, OTHER, "seed=9", "run_name=mine", until=0.5)
    charts = make_charts([Run(run)], find_reference([Run(run)], written))
    behind = {chart.key: chart.series[0] for chart in charts if chart.series[0].run is None}
    assert behind.keys() == {"loss", "masked_accuracy"}
    assert behind["loss"].label == "reference, 3 seeds"
    assert min(behind["loss"].low) < min(behind["loss"].mean)
    write_report([run], reference=written)
    assert "reference, 3 seeds" in (run / "report.html").read_text()
    assert "reference, 3 seeds" in (run / "report" / "pictures.md").read_text()


def test_of_nano_it_is_known_without_being_given(tmp_path):
    run = Run(write_run(tmp_path / "nano", NANO, "seed=3", "run_name=mine", "data.local=elsewhere"))
    assert len(find_reference([run])["seeds"]) == 5
    assert find_reference([Run(write_run(tmp_path / "other", NANO, OTHER))]) is None


def test_a_run_of_another_recipe_is_refused(seeds, written, tmp_path):
    with pytest.raises(ConfigurationError, match=r"another recipe \(s1\)"):
        find_reference([Run(write_run(tmp_path / "nano", NANO))], written)
    with pytest.raises(ConfigurationError, match="nano: follows another recipe than"):
        write_reference([seeds[0], tmp_path / "nano"], tmp_path / "out.json")


def test_what_is_no_set_of_finished_runs_is_refused(seeds, tmp_path):
    half = write_run(tmp_path / "half", NANO, OTHER, "seed=4", until=0.5)
    twice = write_run(tmp_path / "twice", NANO, OTHER, "seed=1")
    back = [write_run(tmp_path / f"back{seed}", LARGE, f"seed={seed}", every=2000) for seed in (1, 2)]
    for runs, complaint in (
        ([seeds[0]], "several runs"),
        ([seeds[0], half], "half: is not finished"),
        ([seeds[0], twice], "seed 1 occurs twice"),
        (back, "was rolled back"),
    ):
        with pytest.raises(ConfigurationError, match=complaint):
            write_reference(runs, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()
    with pytest.raises(ConfigurationError, match=r"out\.json cannot be written"):
        write_reference(seeds, seeds[0] / "metrics.jsonl" / "out.json")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"recipe": 1}'])
def test_a_file_that_is_no_reference_is_named(seeds, tmp_path, text):
    (tmp_path / "broken.json").write_text(text)
    with pytest.raises(DataError, match=r"broken\.json"):
        find_reference([Run(seeds[0])], tmp_path / "broken.json")
