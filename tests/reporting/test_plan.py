"""`rotary-foundry plan`: the whole of a recipe, before anything is run."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from rotary_foundry import compile_plan, load_recipe
from rotary_foundry.data.rows import Manifest
from rotary_foundry.data.target_context import counted_lengths
from rotary_foundry.reporting import plan_remarks
from rotary_foundry.reporting.plan_remarks import changed_updates
from rotary_foundry.runs.trained_state import Source
from tests.command import rotary_foundry

LARGE, NANO = "yamls/main/large.yaml", "yamls/main/nano.yaml"
TOTAL = compile_plan(load_recipe(NANO)).total_tokens


def plan(*arguments: str) -> subprocess.CompletedProcess:
    return rotary_foundry("plan", *arguments)


def cells(output: str) -> list[list[str]]:
    """The words of every line, the arrows' ends kept apart."""
    return [line.split() for line in output.splitlines()]


def test_json_is_the_plan_what_a_token_costs_and_nothing_else():
    done = plan(LARGE, "--json", "run_name=mine", "data.local=no/corpus")
    found = json.loads(done.stdout)
    costs, memory, data = found.pop("costs"), found.pop("memory"), found.pop("data")
    assert found == compile_plan(load_recipe(LARGE, ["run_name=mine"])).to_json()
    assert [costs[stage]["row_length"] for stage in ("pretrain", "extend", "decay")] == [1024, 8192, 8192]
    assert costs["extend"]["attention_share"] > costs["pretrain"]["attention_share"] > 0
    assert {use["state_bytes"] for use in memory.values()} == {16 * 395_881_664} and memory.keys() == costs.keys()
    assert (data, done.returncode, done.stderr) == ({}, 0, "")


def test_memory_is_told_at_each_row_length_and_on_each_gpu():
    recipe = "yamls/main/llama2_long_curriculum_20.yaml"
    machine = ("--gpus", "8", "--gpu", "h100", "--mfu", "0.4")
    told = " ".join(plan(recipe, *machine, "stages.short.device_train_microbatch_size=4").stdout.split())
    of_a_gpu = "on a GPU; with its share of the model and 5 GB for what is not counted,"
    assert f"short: a microbatch of 4 × 4,096 tokens keeps 12.1 GB {of_a_gpu} 30.6 GB of 80 GB" in told
    assert f"long: a microbatch of 1 × 32,768 tokens keeps 24.3 GB {of_a_gpu} 42.7 GB of 80 GB" in told
    assert "108 GB of weights, gradients and moments, divided over the GPUs that share a copy" in told
    base = " ".join(plan("yamls/main/base.yaml", "--gpu", "h100").stdout.split())  # of a node
    assert f"pretrain: a microbatch of 96 × 1,024 tokens keeps 55.9 GB {of_a_gpu} 61.2 GB of 80 GB" in base
    assert "hours" not in base
    of_long = json.loads(plan(recipe, "--json").stdout)["memory"]["long"]
    assert of_long == {"microbatch": 1, "kept_bytes": 24_259_854_336, "state_bytes": 16 * 6_738_415_616}


def test_hours_are_not_promised_for_what_does_not_fit():
    """The published 56 rows of large fit on 80 GB because layers are compiled."""
    machine = ("--gpus", "8", "--gpu", "h100", "--mfu", "0.33")
    assert "hours on 8 × h100" in plan(LARGE, *machine).stdout
    told = " ".join(plan(LARGE, *machine, "compile_config={disable: true}").stdout.split())
    assert "of 80 GB: does not fit; take fewer rows, or recompute" in told
    assert "time none: the recipe does not fit on 8 × h100" in told
    assert "hours" not in told


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
    sizes = ["stages.pretrain.duration=1_245_184tok", "stages.pretrain.global_train_batch_size=8"]
    given = ["data.local=nowhere", *sizes, "stages.pretrain.lr=1e-3", "stages.pretrain.t_warmup=0tok"]
    given += [f"stages.pretrain.lr_schedule={points}"]
    lines = cells(plan(NANO, *given).stdout)
    rates = [" ".join(line[5 : line.index("10,000")]) for line in lines if line[:1] == ["pretrain"]]
    assert rates == ["0 → 1e-3 → 8.66e-4", "8.66e-4 → 5.28e-4", "5.28e-4 → 5e-4 → 1e-5", "1e-5"]


@pytest.fixture
def corpus(tmp_path):
    """Manifests of rows of 4,096: whole documents of a row, and documents of 256 tokens; an update has two rows."""
    (tmp_path / "tokenizer").mkdir()
    counts = {"long": (10, 4096), "short": (160, 256)}
    for source, (documents, each) in counts.items():
        longer = {str(length): [documents, 40_960] if each > length else [0, 0] for length in counted_lengths(4096)}
        (tmp_path / source / "4096/train").mkdir(parents=True)
        manifest = Manifest(source, "train", 4096, 10, documents, 40_960, 1.0, "made", longer)
        manifest.write(tmp_path / source / "4096/train")
    return tmp_path


LONG = ["yamls/main/llama_nano_long.yaml", "data.sources=[long,short]", "stages.extend.duration=20ba"]


def test_epochs_and_the_context_of_targets_are_those_of_the_corpus(corpus):
    given = [*LONG, f"data.local={corpus}", "stages.extend.mixture={long: 0.75, short: 0.25}"]
    lines = cells(plan(*given).stdout)
    assert ["epochs", "extend:", "long", "3,", "short", "1"] in lines
    targets = 0.75 * 4095 + 0.25 * 16 * 255
    shares = [f"{(0.75 * (4096 - c) + 0.25 * 16 * max(0, 256 - c)) / targets:.1%}" for c in (128, 512, 1024, 2048)]
    assert ["context", *(word for c in ("128", "512", "1,024", "2,048") for word in ("≥", c))] in lines
    assert ["extend", *shares] in lines
    found = json.loads(plan(*given, "--json").stdout)["data"]["extend"]
    assert found["epochs"] == {"long": 3, "short": 1}
    assert found["context"]["1024"] == pytest.approx(0.75 * 3072 / targets)


def test_a_corpus_without_counts_has_epochs_and_none_at_all_is_said(corpus):
    for file in corpus.rglob("manifest.json"):
        content = json.loads(file.read_text())
        del content["longer"]
        file.write_text(json.dumps(content))
    done = plan(*LONG, f"data.local={corpus}", "stages.extend.mixture=null")
    assert ["epochs", "extend:", "long", "2,", "short", "2"] in cells(done.stdout)
    assert "an earlier version prepared it" in " ".join(done.stdout.split()) and "≥" not in done.stdout
    done = plan(*LONG, "data.local=no/corpus", "stages.extend.mixture=null")
    assert "no/corpus: no corpus there yet" in " ".join(done.stdout.split())


def test_other_tokens_an_update_over_a_switch_of_length_are_a_warning_by_key(tmp_path, monkeypatch):
    path = "yamls/main/llama2_long_curriculum_20.yaml"
    recipe = load_recipe(path)
    assert not list(changed_updates(recipe, compile_plan(recipe)))
    recipe = load_recipe(path, ["stages.long.global_train_batch_size=64"])
    assert list(changed_updates(recipe, compile_plan(recipe))) == [
        "stages.long.global_train_batch_size: an update has 2,097,152 tokens in rows of 32,768, and in short 4,194,304 "
        "in rows of 4,096; set 128 for as many"
    ]
    source = Source(recipe.family, recipe.model.shape, {}, 4096, tmp_path, 2**20)
    monkeypatch.setattr(plan_remarks, "read_source", lambda path: source)
    long = load_recipe("yamls/main/llama2_long_curriculum_0.yaml")
    long = replace(long, init_from=str(tmp_path))
    (remark,) = changed_updates(long, compile_plan(long))
    assert f"4,194,304 tokens in rows of 32,768, and in {tmp_path} 1,048,576 in rows of 4,096; set 32 for" in remark
    ramped = load_recipe("yamls/main/base.yaml")  # a ramp changes them at one length
    assert not list(changed_updates(ramped, compile_plan(ramped)))


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
        ((NANO, "--gpus", "8", "--mfu", "0.4"), "--gpus and --mfu need --gpu, one of h100, h200"),
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
