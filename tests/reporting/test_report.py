"""What the page is made of: the records of a run, read whole, in progress, killed, rolled back or broken."""

import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import matplotlib.image
import pytest
from PIL import Image

from rotary_foundry import load_recipe
from rotary_foundry.recipe.compilation import compile_plan
from rotary_foundry.reporting.charts import BUCKETS, report
from rotary_foundry.reporting.records import Run
from rotary_foundry.reporting.report_page import page, write_report
from rotary_foundry.utils.errors import ConfigurationError, DataError
from tests.reporting.made_run import write_result, write_run

NANO, BASE, LARGE = "yamls/main/nano.yaml", "yamls/main/base.yaml", "yamls/main/large.yaml"
COMMAND = str(Path(sys.executable).parent / "rotary-foundry")


def content(*paths: Path) -> dict:
    return report([Run(path) for path in paths])


def chart(found: dict, name: str) -> dict:
    """A chart with the tokens of its lines."""
    wanted = next(one for one in found["charts"] if one["id"] == name)
    for series in wanted["series"]:
        series["x"] = found["tokens"][series["tokens"]]
    return wanted


def line(found: dict, name: str, abandoned: bool = False) -> dict[int, float]:
    series = next(one for one in chart(found, name)["series"] if one["abandoned"] == abandoned)
    return dict(zip(series["x"], series["y"], strict=True))


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
    done = subprocess.run([COMMAND, "report", run], capture_output=True, text=True, timeout=100)
    assert (done.stdout, done.stderr, done.returncode) == (f"report: {run / 'report.html'}\n", "", 0)
    return run


def test_the_command_writes_a_small_page_and_says_where(written):
    assert (written / "report.html").stat().st_size < 300_000


def test_what_is_drawn_of_a_short_run_is_every_update(nano):
    found = content(nano)
    records = [json.loads(text) for text in lines_of(nano)]
    assert not found["thinned"]
    assert line(found, "loss") == pytest.approx({one["token"]: one["loss"] for one in records}, rel=1e-3)


def test_a_long_run_takes_no_more_room_than_its_stages_have_points_and_loses_no_spike(tmp_path):
    run = write_run(tmp_path / "base", BASE, every=20)
    text = lines_of(run)
    spike = json.loads(text[12_345]) | {"loss": 17.25}
    (run / "metrics.jsonl").write_text("".join([*text[:12_345], json.dumps(spike) + "\n", *text[12_346:]]))
    found = content(run)
    assert len(text) > 20_000
    assert found["thinned"]
    assert max(len(tokens) for tokens in found["tokens"]) <= 3 * BUCKETS
    assert len(page(found)) < 1_000_000
    assert max(chart(found, "loss")["series"][0]["high"]) == 17.25
    assert max(chart(found, "loss")["series"][0]["y"]) < 17


def test_the_corners_of_a_long_run_s_schedule_are_to_the_update(tmp_path):
    run = write_run(tmp_path / "base", BASE, every=20, monitors=False)
    found, records = content(run), [json.loads(text) for text in lines_of(run)]
    for name in ("rows", "row_length", "rope_theta"):
        drawn = line(found, name)
        for before, after in pairwise(records):
            if before[name] != after[name]:
                assert (drawn[before["token"]], drawn[after["token"]]) == (before[name], after[name])


def test_an_abandoned_stretch_is_apart_from_the_line_that_was_kept(tmp_path):
    run = write_run(tmp_path / "large", LARGE, every=200, monitors=False)
    plan = compile_plan(load_recipe(LARGE))
    back = json.loads((run / "rollbacks.jsonl").read_text())
    found = content(run)
    kept, abandoned = line(found, "lr"), line(found, "lr", abandoned=True)
    assert list(kept) == sorted(kept)
    assert {token for token in kept if token > back["to_token"]}
    assert all(lr == pytest.approx(5e-5) for token, lr in kept.items() if back["to_token"] < token < back["token"])
    assert set(abandoned.values()) == {5e-4}
    assert min(abandoned) > back["to_token"]
    assert max(kept) > 0.99 * plan.total_tokens
    assert found["runs"][0]["rollbacks"] == [back]


def test_of_updates_that_a_killed_run_trained_again_the_last_hold(nano):
    text = lines_of(nano)
    again = [json.dumps(json.loads(one) | {"loss": 3 + batch / 100}) + "\n" for batch, one in enumerate(text[50:60])]
    (nano / "metrics.jsonl").write_text("".join(text[:60] + again))
    drawn = list(line(content(nano), "loss").values())
    assert len(drawn) == 60
    assert drawn[50:] == pytest.approx([3 + batch / 100 for batch in range(10)])


def test_a_line_that_is_being_written_is_read_when_it_is_whole(nano):
    text = lines_of(nano)
    metrics = nano / "metrics.jsonl"
    metrics.write_text("".join(text[:40]) + text[40][:100])
    run = Run(nano)
    assert len(line(report([run]), "loss")) == 40
    metrics.write_text("".join(text[:42]))
    run.refresh()
    assert len(line(report([run]), "loss")) == 42


def test_a_run_that_was_begun_anew_is_read_anew(nano):
    run = Run(nano)
    (nano / "metrics.jsonl").write_text("".join(lines_of(nano)[:3]))
    run.refresh()
    assert len(line(report([run]), "loss")) == 3


def test_a_run_without_monitors_or_without_any_update_has_a_page(tmp_path):
    bare = write_run(tmp_path / "bare", NANO, monitors=False)
    (bare / "environment.json").unlink()
    assert not {"mfu", "grad_norm", "step-0"} & {one["id"] for one in content(bare)["charts"]}
    begun = write_run(tmp_path / "begun", NANO)
    for name in ("metrics.jsonl", "eval.jsonl"):
        (begun / name).unlink()
    assert content(begun)["charts"] == []
    assert write_report([begun]).exists()


def test_a_loss_that_is_no_number_leaves_a_gap(nano):
    text = lines_of(nano)
    text[9] = json.dumps(json.loads(text[9]) | {"loss": float("nan")}) + "\n"
    (nano / "metrics.jsonl").write_text("".join(text))
    assert list(line(content(nano), "loss").values())[9] is None
    shown = re.search(r'id="content">(.*?)</script>', page(content(nano)), re.S).group(1)
    json.loads(shown, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("metrics.jsonl", lambda text: text.replace('"loss"', "loss", 1), "metrics.jsonl, line 1: no JSON"),
        ("metrics.jsonl", lambda text: text.replace('"token"', '"tok"', 1), "line 1: it has no 'token'"),
        ("eval.jsonl", lambda text: "7\n" + text, "eval.jsonl, line 1: it has no 'batch'"),
        ("plan.json", lambda text: text[:-20], "plan.json: it cannot be read"),
        ("recipe.yaml", lambda text: "- one\n- two\n", "recipe.yaml: it should hold a mapping, not a list"),
        ("recipe.yaml", lambda text: "a: [1\n", "recipe.yaml: it cannot be read"),
    ],
)
def test_what_is_broken_is_named(nano, name, damage, said):
    (nano / name).write_text(damage((nano / name).read_text()))
    with pytest.raises(DataError, match=re.escape(said)):
        Run(nano)


def test_what_an_evaluation_found_is_read_with_its_interval_and_read_anew(nano):
    run = Run(nano)
    assert run.results == []
    path = write_result(nano, "export", "masked_lm", loss=(5.5913, 5.4021, 5.774), accuracy=(0.0312, None, None))
    assert run.refresh()
    known = {"model": "export", "suite": "masked_lm"}
    assert report([run])["runs"][0]["results"] == [
        known | {"name": "loss", "value": 5.5913, "low": 5.4021, "high": 5.774},
        known | {"name": "accuracy", "value": 0.0312, "low": None, "high": None},
    ]
    for measure in ('"none"', '{"value": "low"}'):
        path.write_text(f'{{"headlines": [{{"name": "loss", "measure": {measure}}}]}}')
        with pytest.raises(DataError, match=r"export/masked_lm/result\.json: it has no headlines"):
            run.refresh()


def test_what_cannot_be_read_is_named(nano):
    (nano / "eval.jsonl").unlink()
    (nano / "eval.jsonl").mkdir()
    with pytest.raises(DataError, match=r"nano: it cannot be read: .*eval\.jsonl"):
        Run(nano)


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
    assert {"loss.png", "lr.png", "mfu.png", "mixture-0.png", "recipe-1.png"} <= {path.name for path in pictures}
    for path in pictures:
        assert matplotlib.image.imread(path)[..., :3].std() > 0.01, path  # something is drawn
        words = Image.open(path).text["Description"]
        assert re.search(r"\d", words)
        assert f"![{words}]({path.name})" in listed


def test_words_tell_first_last_lowest_and_highest(nano):
    losses = [json.loads(text)["loss"] for text in lines_of(nano)]
    words = chart(content(nano), "loss")["words"]
    for value in (losses[0], losses[-1], min(losses), max(losses)):
        assert f"{value:.4g}" in words


def test_what_differs_between_runs_is_told(tmp_path):
    one = write_run(tmp_path / "one", NANO)
    other = write_run(tmp_path / "other", NANO, "stages.decay.lr=1e-4", "seed=18")
    found = content(one, other)
    assert {row["key"]: row["values"] for row in found["differences"]} == {
        "seed": ["17", "18"],
        "stages.decay.lr": [str(load_recipe(NANO).stages["decay"].lr), "0.0001"],
    }
    names = [run["name"] for run in found["runs"]]
    assert len(set(names)) == 2  # of the same recipe's name
