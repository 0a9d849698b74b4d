"""`summary` prints what a run's folder has, and says what it cannot show."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from rotary_foundry.data.corpus import keep_rows
from rotary_foundry.runs.run_folder import RunFolder
from rotary_foundry.runs.trained_state import recipe_of
from rotary_foundry.utils.errors import DataError
from tests.command import output_of, rotary_foundry
from tests.finished_run import write_finished_run

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> RunFolder:
    """To be read only."""
    return write_finished_run(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def run(finished, tmp_path) -> RunFolder:
    """A copy of it, in a folder of its own."""
    shutil.copytree(finished.path.parent / "data", tmp_path / "data")
    run = RunFolder(shutil.copytree(finished.path, tmp_path / "run"))
    run.environment.write_text(json.dumps({"working_directory": str(tmp_path)}))
    return run


def summary_of(run: RunFolder) -> str:
    return " ".join(output_of("summary", run.path).split())


def test_special_tokens_spelled_in_a_text_stay_text(run, monkeypatch):
    """A second mask in a text about tokenizers was one more place to fill."""
    text = "the [MASK] token of an encoder and [SEP] and [PAD] and [MASK] window"
    held_out = [type("Text", (), {"text": text})] * 3
    monkeypatch.setattr("rotary_foundry.reporting.summary.held_out", lambda *_: held_out)
    printed = summary_of(run)
    assert printed.count("in the text: ") == 3
    assert printed.count("%;") == 3


def cut_off(path: Path) -> None:
    path.write_text("{")


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("model.safetensors", Path.unlink, "neither model.safetensors nor model.safetensors.index.json found"),
        ("model.safetensors", cut_off, "model.safetensors: cannot be read"),
        ("tokenizer.json", Path.unlink, "tokenizer.json is missing"),
        ("tokenizer.json", cut_off, "tokenizer.json: cannot be read as a tokenizer"),
        ("tokenizer_config.json", cut_off, "cannot open this tokenizer"),
        ("config.json", cut_off, "config.json: cannot be read"),
    ],
)
def test_of_a_damaged_export_the_summary_says_why_no_masks_are_filled(run, name, damage, said):
    damage(run.export / name)
    printed = summary_of(run)
    assert "decay" in printed
    assert "No masks are filled: " in printed
    assert said in printed


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("plan.json", "{}", "plan.json: expected the key 'name', found none"),
        ("plan.json", "[", "plan.json: cannot be read: "),
        ("plan.json", None, "plan.json: cannot be read: "),
        ("plan.json", '{"name": "x", "total_tokens": 1, "segments": [{}]}', "segment 1: expected the key 'stage'"),
        ("eval.jsonl", "[]\n", "eval.jsonl, line 1: expected a JSON object, found []"),
        ("eval.jsonl", '{"batch": 1}\n', "eval.jsonl, line 1: expected the key 'token', found none"),
        (
            "metrics.jsonl",
            "5\n{\n",
            "metrics.jsonl, line 1: expected a JSON object, found 5; remove the line (and 1 more)",
        ),
        ("metrics.jsonl", '{"batch": 1}\n', "metrics.jsonl, line 1: expected the key 'token', found none"),
        ("rollbacks.jsonl", '{"token": 1}\n', "rollbacks.jsonl, line 1: expected the key 'trigger'"),
        ("recipe.yaml", "[", "recipe.yaml: "),
        ("recipe.yaml", None, "recipe.yaml: "),
    ],
)
def test_a_damaged_record_is_named_and_the_rest_is_printed(run, name, content, said):
    (run.path / name).unlink()
    if content is not None:
        (run.path / name).write_text(content)
    printed = summary_of(run)
    assert printed.count("Not shown: ") == 1
    assert said in printed.partition(f"Not shown: {run.path / name}"[: -len(name)])[2]
    assert ("held-out loss" in printed) == (name != "plan.json")
    assert ("No masks" in printed or "in the text: " in printed) == (name != "recipe.yaml")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metrics.jsonl", "5\n", "metrics.jsonl, line 1: expected a JSON object, found 5"),
        ("metrics.jsonl", '{"batch": 1}\n', "metrics.jsonl, line 1: expected the key 'token'"),
        ("metrics.jsonl", '{"batch": 1, "token": 128}\n', "metrics.jsonl, line 1: expected the key 'rows_digest'"),
        ("rollbacks.jsonl", "[]\n", "rollbacks.jsonl, line 1: expected a JSON object, found []"),
        ("recipe.yaml", "[", "recipe.yaml: "),
        ("recipe.yaml", "a: b\n", "recipe.yaml: 'model.family' is required and not given"),
    ],
)
def test_a_trace_needs_the_recipe_and_the_records_whole(run, name, content, said):
    (run.path / name).write_text(content)
    done = rotary_foundry("data", "trace", run.path, "--update", 2)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"error: {run.path}/{said}" in done.stderr


def test_what_a_trace_does_not_need_may_be_damaged(run):
    for name in ("plan.json", "eval.jsonl", "environment.json", "rows.json"):
        (run.path / name).write_text("[")
    output_of("data", "trace", run.path, "--update", 2, "--data", run.path.parent / "data")


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_a_damaged_file_of_rows_is_named_where_a_run_resumes(run, content):
    run.rows.write_text(content)
    recipe = recipe_of(run)
    with pytest.raises(DataError, match=r"run/rows\.json: cannot be read: "):
        keep_rows(recipe, run.rows, {64, 256})


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("stages.extend.rope_theta", [160_000], "no plan follows from its values"),
        ("stages.extend.duration", "nll", "no plan follows from its values"),
        ("stages", {}, "'stages': not what a run was begun with"),
        ("seed", -1, "'seed': not what a run was begun with"),
    ],
)
def test_a_recipe_that_was_changed_since_is_named(run, key, value, said):
    recipe = yaml.safe_load(run.recipe.read_text())
    *above, last = key.split(".")
    inside = recipe
    for name in above:
        inside = inside[name]
    inside[last] = value
    run.recipe.write_text(yaml.safe_dump(recipe))
    for command in (("data", "trace", run.path, "--update", 2), ("export", run.path, run.path / "exported")):
        done = rotary_foundry(*command)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"error: {run.recipe}")
        assert said in done.stderr
    assert "held-out loss" in summary_of(run)


def test_a_share_that_is_no_number_is_named_by_the_export(run):
    *lines, last = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    changed = [*lines, last | {"drawn": {"mine": None}}]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in changed))
    done = rotary_foundry("export", run.path, run.path / "exported")
    said = f"metrics.jsonl, line {len(changed)}: expected numbers by name or null for 'drawn', found {{'mine': None}}"
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
