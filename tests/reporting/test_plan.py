"""`rotary-foundry plan`: the whole of a recipe, before anything is run."""

import json
import subprocess
import sys

import pytest

from rotary_foundry import compile_plan, load_recipe
from tests.command import rotary_foundry

LARGE, NANO = "yamls/main/large.yaml", "yamls/main/nano.yaml"
TOTAL = compile_plan(load_recipe(NANO)).total_tokens


def plan(*arguments: str) -> subprocess.CompletedProcess:
    return rotary_foundry("plan", *arguments)


def cells(output: str) -> list[list[str]]:
    """The words of every line, the arrows' ends kept apart."""
    return [line.split() for line in output.splitlines()]


def test_json_is_the_plan_and_nothing_else():
    done = plan(LARGE, "--json", "run_name=mine")
    assert json.loads(done.stdout) == compile_plan(load_recipe(LARGE, ["run_name=mine"])).to_json()
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("at", ["900_000_000_000", "900_000_000_000tok", "900000000000"])
def test_json_of_a_token_is_its_position(at):
    position = compile_plan(load_recipe(LARGE)).at(900_000_000_000)
    assert json.loads(plan(LARGE, "--at", at, "--json").stdout) == position.to_json()


def test_a_position_is_printed_by_its_names():
    assert ["lr", "5e-5"] in cells(plan(LARGE, "--at", "900_000_000_000").stdout)


def test_the_table_has_every_segment_in_the_order_of_training_and_the_abandoned_stretch_in_its_place():
    lines = cells(plan(LARGE).stdout)
    segments = [line for line in lines if line[:1] in (["pretrain"], ["extend"], ["decay"])]
    assert [line[2] for line in segments] == [f"{448 * rung:,}" for rung in range(1, 12)] + ["4,928"] * 2 + [
        "616",
        "624",
    ]
    before, abandoned, after = segments[10:13]
    assert lines[lines.index(abandoned) + 1] == ["abandoned"]
    assert (before[-2:], abandoned[-2:]) == (["5e-4", "10,000"], ["5e-4", "10,000"])
    assert after[-3:] == ["5e-5", "10,000", "1e-6"]
    assert segments[0][-5:] == ["0", "→", "4.54e-5", "10,000", "1e-5"]
    assert ["kept", "401,949", "2,018,993,373,184"] in lines
    assert ["mixture", "decay:", "web", "0.4,", "code", "0.2,", "papers", "0.4"] in lines


def test_the_table_has_the_rate_at_every_point_of_a_schedule():
    points = "[[0tok, 0], [40_000tok, 1], [0.5dur, 0.5], [0.9dur, 0.01]]"
    given = ["stages.pretrain.t_warmup=0tok", f"stages.pretrain.lr_schedule={points}"]
    lines = cells(plan(NANO, *given).stdout)
    rates = [" ".join(line[5 : line.index("10,000")]) for line in lines if line[:1] == ["pretrain"]]
    assert rates == ["0 → 1e-3 → 8.66e-4", "8.66e-4 → 5.28e-4", "5.28e-4 → 5e-4 → 1e-5", "1e-5"]


def test_nothing_is_cut_off_in_a_narrow_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert "…" not in plan(LARGE).stdout


def test_hours_come_with_the_gpus_that_take_them():
    half, whole = (plan(NANO, "--gpus", "8", "--gpu", "h100", "--mfu", mfu) for mfu in ("0.000001", "0.0000005"))
    hours = [float(line[1]) for done in (half, whole) for line in cells(done.stdout) if line[:1] == ["time"]]
    assert hours[1] == pytest.approx(2 * hours[0], rel=0.05) and hours[0] > 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((NANO, "--gpus", "8", "--gpu", "h100"), "without a default"),
        ((NANO, "--gpus", "8", "--gpu", "h1000", "--mfu", "0.4"), "known are h100, h200, a100, l40s, b200, mi300x"),
        ((NANO, "--gpus", "8", "--gpu", "h100", "--mfu", "40"), "not a share of a GPU's peak"),
        ((NANO, "--gpus", "0", "--gpu", "h100", "--mfu", "0.4"), "--gpus: 0 is not positive"),
        ((NANO, "--at", f"{TOTAL + 1:_}"), f"--at: token {TOTAL + 1:_} is outside the plan, which has {TOTAL:_}"),
        ((NANO, "--at=-1"), "--at: token -1 is outside the plan"),
        ((NANO, "--at", "soon"), "--at: expected a number of tokens such as 900_000_000_000, got 'soon'"),
        ((NANO, "stages.pretrain.rows=3"), "unknown key 'stages.pretrain.rows'"),
    ],
)
def test_what_cannot_be_answered_is_one_line_and_status_2(arguments, said):
    done = plan(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_plan_is_printed_without_importing_torch():
    program = (
        "import sys; from typer.testing import CliRunner; from rotary_foundry.cli import app; "
        f"done = CliRunner().invoke(app, ['plan', '{LARGE}', '--gpus', '8', '--gpu', 'h100', '--mfu', '0.4']); "
        "print(done.exit_code, [name for name in ('torch', 'composer', 'streaming', 'transformers') "
        "if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "0 []\n"
