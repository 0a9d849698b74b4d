"""What the page is made of: the records of a run, in progress, killed, rolled back or broken."""

import json
import math
import re
from html import escape
from itertools import pairwise
from pathlib import Path

import matplotlib.image
import pytest
from PIL import Image

from rotary_foundry import load_recipe
from rotary_foundry.recipe.compilation import compile_plan
from rotary_foundry.reporting.charts import Chart, make_charts, run_names, words
from rotary_foundry.reporting.records import BINS, Run
from rotary_foundry.reporting.reference import write_reference
from rotary_foundry.reporting.report_page import differences, write_report
from rotary_foundry.utils.errors import ConfigurationError, DataError
from tests.command import rotary_foundry
from tests.reporting.made_run import write_result, write_run

NANO, BASE, LARGE = "yamls/main/nano.yaml", "yamls/main/base.yaml", "yamls/main/large.yaml"


def charts_of(*paths: Path) -> dict[str, Chart]:
    return {chart.key: chart for chart in make_charts([Run(path) for path in paths])}


def line(charts: dict[str, Chart], name: str, abandoned: bool = False) -> dict[int, float]:
    series = next(one for one in charts[name].series if one.abandoned == abandoned)
    return dict(zip(series.token.astype(int).tolist(), series.mean.tolist(), strict=True))


def lines_of(path: Path) -> list[str]:
    return (path / "metrics.jsonl").read_text().splitlines(keepends=True)


@pytest.fixture
def nano(tmp_path) -> Path:
    return write_run(tmp_path / "nano", NANO)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """The folder of a run with a secret in its recipe, its report in it, as the command writes it."""
    planted = "loggers.wandb={project: x, init_kwargs: {api_key: planted-secret}}"
    run = write_run(tmp_path_factory.mktemp("runs") / "nano", NANO, planted)
    done = rotary_foundry("report", run)
    assert (done.stdout, done.stderr, done.returncode) == (f"report: {run / 'report.html'}\n", "", 0)
    return run


def test_what_is_drawn_of_a_short_run_is_every_update(nano):
    records = [json.loads(text) for text in lines_of(nano)]
    assert line(charts_of(nano), "loss") == pytest.approx({one["token"]: one["loss"] for one in records})


def test_a_long_run_has_few_points_and_loses_no_spike(tmp_path):
    run = write_run(tmp_path / "base", BASE, every=20)
    text = lines_of(run)
    spike = json.loads(text[12_345]) | {"loss": 17.25}
    (run / "metrics.jsonl").write_text("".join([*text[:12_345], json.dumps(spike) + "\n", *text[12_346:]]))
    loss = charts_of(run)["loss"].series[0]
    assert len(text) > 20_000
    segments = len(json.loads((run / "plan.json").read_text())["segments"])
    assert len(loss.token) <= 3 * BINS + segments
    assert max(loss.high) == 17.25
    assert max(loss.mean) < 17


def test_changes_of_a_long_run_s_batch_and_rows_are_exact_to_the_update(tmp_path):
    run = write_run(tmp_path / "base", BASE, every=20, monitors=False)
    charts, records = charts_of(run), [json.loads(text) for text in lines_of(run)]
    for name in ("rows", "row_length", "rope_theta"):
        drawn = line(charts, name)
        assert set(drawn.values()) == {one[name] for one in records}
        for before, after in pairwise(records):
            if before[name] != after[name]:
                assert drawn[before["token"]] == before[name]


def test_an_abandoned_stretch_is_apart_from_the_line_that_was_kept(tmp_path):
    run = write_run(tmp_path / "large", LARGE, every=200, monitors=False)
    back = json.loads((run / "rollbacks.jsonl").read_text())
    kept, abandoned = (line(charts_of(run), "lr", of) for of in (False, True))
    assert list(kept) == sorted(kept)
    again = [lr for token, lr in kept.items() if back["to_token"] < token < back["token"]]
    assert again == pytest.approx([5e-5] * len(again))
    assert list(abandoned.values()) == pytest.approx([5e-4] * len(abandoned))
    assert min(abandoned) > back["to_token"]
    assert max(kept) > 0.99 * compile_plan(load_recipe(LARGE)).total_tokens


def test_of_updates_that_a_killed_run_trained_again_the_last_hold(nano):
    text = lines_of(nano)
    again = [json.dumps(json.loads(one) | {"loss": 3 + batch / 100}) + "\n" for batch, one in enumerate(text[50:60])]
    (nano / "metrics.jsonl").write_text("".join(text[:65] + again))
    drawn = list(line(charts_of(nano), "loss").values())
    assert len(drawn) == 60
    assert drawn[50:] == pytest.approx([3 + batch / 100 for batch in range(10)])


@pytest.mark.parametrize(("killed", "resumed"), [(7000, 1200), pytest.param(12_000, 11_111, marks=pytest.mark.long)])
def test_a_long_run_that_was_killed_is_drawn_as_one_that_was_not(tmp_path, killed, resumed):
    run = write_run(tmp_path / "base", BASE, every=20, monitors=False, until=0.6)
    text, expected = lines_of(run), charts_of(run)["loss"].series[0]
    (run / "metrics.jsonl").write_text("".join(text[:killed] + text[resumed:]))
    loss = charts_of(run)["loss"].series[0]
    for name in ("token", "mean", "low", "high"):
        assert getattr(loss, name).tolist() == getattr(expected, name).tolist()


def test_a_line_that_is_being_written_is_left_out(nano):
    text = lines_of(nano)
    (nano / "metrics.jsonl").write_text("".join(text[:40]) + text[40][:100])
    assert len(line(charts_of(nano), "loss")) == 40


def test_a_run_without_monitors_or_without_any_update_has_a_page(tmp_path):
    bare = write_run(tmp_path / "bare", NANO, monitors=False)
    (bare / "environment.json").unlink()
    assert not {"mfu", "grad_norm", "step_seconds"} & charts_of(bare).keys()
    begun = write_run(tmp_path / "begun", NANO)
    for name in ("metrics.jsonl", "eval.jsonl"):
        (begun / name).unlink()
    assert charts_of(begun) == {}
    assert write_report([begun])[0].exists()


def test_a_loss_that_is_no_number_leaves_a_gap(nano):
    text = lines_of(nano)
    text[9] = json.dumps(json.loads(text[9]) | {"loss": float("nan")}) + "\n"
    (nano / "metrics.jsonl").write_text("".join(text))
    (nano / "eval.jsonl").write_text((nano / "eval.jsonl").read_text().replace('"loss": ', '"loss": NaN, "was": '))
    assert math.isnan(list(line(charts_of(nano), "loss").values())[9])
    assert write_report([nano])[0].exists()


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("metrics.jsonl", lambda text: text.replace('"loss"', "loss", 1), "metrics.jsonl, line 1: expected JSON"),
        ("metrics.jsonl", lambda text: text.replace('"token"', '"tok"', 1), "line 1: expected the key 'token'"),
        ("metrics.jsonl", lambda text: '5\n{"batch": 1}\n' + text, "line 1: expected a JSON object, found 5"),
        ("metrics.jsonl", lambda text: '{"batch": 1}\n' + text, "line 1: expected the key 'token'"),
        ("eval.jsonl", lambda text: "[]\n" + text, "eval.jsonl, line 1: expected a JSON object, found []"),
        ("eval.jsonl", lambda text: text.replace('"loss": ', '"loss": "', 1).replace(",", '",', 1), "line 1: expected"),
        ("plan.json", lambda text: text[:-20], "plan.json: cannot be read"),
        ("plan.json", lambda text: "{}", "plan.json: expected the key 'name', found none"),
        ("plan.json", lambda text: '{"name": "x", "total_tokens": 1, "segments": [{}]}', "segment 1: expected the key"),
        ("environment.json", lambda text: "{", "environment.json: cannot be read"),
        ("recipe.yaml", lambda text: "- one\n- two\n", "recipe.yaml: expected a mapping, found a list"),
        ("recipe.yaml", lambda text: "a: [1\n", "recipe.yaml: cannot be read"),
    ],
)
def test_what_is_broken_is_named_and_the_rest_is_shown(nano, name, damage, said):
    (nano / name).write_text(damage((nano / name).read_text()))
    done = rotary_foundry("report", nano)
    assert (done.returncode, done.stderr) == (0, "")
    problem, page = done.stdout.splitlines()
    assert problem.startswith(f"not shown: {nano / name}")
    assert said in problem
    assert page == f"report: {nano / 'report.html'}"
    assert escape(said) in (nano / "report.html").read_text()
    assert charts_of(nano)["loss"].series
    with pytest.raises(DataError, match=re.escape(said)):
        write_reference([nano, nano], nano / "reference.json")


@pytest.mark.parametrize("measure", ['"none"', '{"value": "low"}', '{"value": 1.0, "low": null}'])
def test_a_result_without_headlines_is_named(nano, measure):
    path = write_result(nano, "export", "masked_lm", loss=(5.5913, 5.4021, 5.774))
    path.write_text(f'{{"headlines": [{{"name": "loss", "measure": {measure}}}]}}')
    (problem,) = Run(nano).problems
    assert problem.startswith(f"{path}: it has no headlines")


def test_what_cannot_be_read_is_named(nano):
    (nano / "eval.jsonl").unlink()
    (nano / "eval.jsonl").mkdir()
    assert Run(nano).problems == [f"[Errno 21] Is a directory: '{nano / 'eval.jsonl'}'"]


@pytest.mark.parametrize("loss", [math.inf, 1.79769e308, -math.inf])
@pytest.mark.parametrize("name", ["eval.jsonl", "metrics.jsonl"])
def test_a_loss_that_is_infinite_or_nearly_so_is_a_gap(nano, name, loss):
    *lines, last = [json.loads(text) for text in (nano / name).read_text().splitlines()]
    changed = [*lines, last | {"loss": loss}]
    (nano / name).write_text("".join(json.dumps(one) + "\n" for one in changed))
    page, problems = write_report([nano])
    assert (page.exists(), problems) == (True, [])


@pytest.mark.parametrize("name", ["plan.json", "recipe.yaml", "environment.json"])
def test_what_is_missing_is_named_and_the_rest_is_shown(nano, name):
    (nano / name).unlink()
    done = rotary_foundry("report", nano)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"not shown: {nano / name}: cannot be read: ")
    assert charts_of(nano)["loss"].series


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match="no run there"):
        write_report([tmp_path])


def test_a_secret_in_the_recipe_is_nowhere_in_what_is_written(written):
    assert "planted-secret" in (written / "recipe.yaml").read_text()
    files = [written / "report.html", *(written / "report").iterdir()]
    assert len(files) > 10
    assert not [path for path in files if b"planted-secret" in path.read_bytes()]
    assert "(redacted)" in (written / "report.html").read_text()


def test_every_picture_is_one_and_tells_itself_in_words(written):
    pictures = sorted((written / "report").glob("*.png"))
    listed = (written / "report" / "pictures.md").read_text()
    assert {"loss.png", "lr.png", "mfu.png", "mixture-0.png"} <= {path.name for path in pictures}
    for path in pictures:
        assert matplotlib.image.imread(path)[..., :3].std() > 0.01, path  # something is drawn
        words = Image.open(path).text["Description"]
        assert re.search(r"\d", words)
        assert f"![{words}]({path.name})" in listed


def test_words_tell_first_last_lowest_and_highest(nano):
    losses = [json.loads(text)["loss"] for text in lines_of(nano)]
    said = words(charts_of(nano)["loss"])
    first, last, low, high = (f"{value:.4g}" for value in (losses[0], losses[-1], min(losses), max(losses)))
    assert f"training goes from {first} at " in said
    assert f" tokens to {last} at " in said
    assert f"lowest {low}, highest {high}" in said


def test_what_differs_between_runs_is_told(tmp_path):
    one = write_run(tmp_path / "one", NANO)
    other = write_run(tmp_path / "other", NANO, "stages.decay.lr=1e-4", "seed=18")
    runs = [Run(one), Run(other)]
    assert differences(runs) == {
        "seed": ["17", "18"],
        "stages.decay.lr": [str(load_recipe(NANO).stages["decay"].lr), "0.0001"],
    }
    assert len(set(run_names(runs))) == 2  # of the same recipe's name
