"""`plan RECIPE --recipe` prints a recipe that is the same recipe, and says where each of its values comes from."""

import re
from pathlib import Path

import pytest
import yaml

from rotary_foundry import load_recipe
from rotary_foundry.reporting.merged_recipe import merged_recipe
from rotary_foundry.runs.changes import without_secrets
from tests.command import rotary_foundry

NANO, LLAMA = (Path(f"yamls/main/{name}.yaml").resolve() for name in ("nano", "llama_nano"))


def sources(text: str) -> dict[tuple[str, ...], str]:
    """The comment behind each value, by the keys that lead to it."""
    found, keys = {}, []
    for line in text.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        keys = [*keys[:depth], line.strip().partition(":")[0]]
        if "  # " in line:
            found[tuple(keys)] = line.rpartition("  # ")[2]
    return found


@pytest.mark.parametrize(
    "path",
    [  # the others of Llama 2 Long differ by a few values
        pytest.param(path, marks=pytest.mark.long if re.search("_(curriculum|mix)_(?!20|new)", path.stem) else [])
        for path in sorted(Path("yamls/main").glob("*.yaml"))
    ],
    ids=str,
)
def test_what_is_printed_is_the_same_recipe(path, tmp_path):
    callbacks = "{my.Own: {text: 'a # b', lines: \"one\\ntwo\"}, lr_monitor: {}}"
    overrides = [f"callbacks={callbacks}", "loggers.wandb={tags: [a]}"]
    if "init_from" in path.read_text():
        overrides += [f"init_from={_export(tmp_path, LLAMA if 'llama' in path.name else NANO)}"]
    (tmp_path / "printed.yaml").write_text(merged_recipe(path, overrides))
    assert load_recipe(tmp_path / "printed.yaml") == load_recipe(path, overrides)


def _export(folder: Path, path: Path = NANO) -> Path:
    """A run to begin with, as far as a recipe asks it."""
    from tests.recipe.test_source import write_run

    recipe = load_recipe(path)
    return write_run(folder / "run", recipe, 196_608)


def test_every_value_has_its_source(tmp_path):
    (tmp_path / "shared.yaml").write_text(
        f"extends: [{NANO}]\nseed: 5\nstages: {{decay: {{mixture: {{web: 1}}}}}}\nloggers: {{wandb: {{project: p}}}}\n"
    )
    (tmp_path / "mine.yaml").write_text(
        "extends: [shared.yaml]\nmodel: {}\nloggers: {}\nstages: {extend: {lr: 1e-4}}\n"
    )
    mine, shared = str(tmp_path / "mine.yaml"), str(tmp_path / "shared.yaml")
    first = load_recipe(NANO).data.sources[0]
    overrides = ["precision=fp32", "stages.decay.mixture.code=2", f"data.sources[0]={first}"]
    text = merged_recipe(mine, overrides)
    found = sources(text)
    assert found["seed",] == shared
    assert found["stages", "extend", "lr"] == mine
    assert found["stages", "extend", "row_length"] == str(NANO.parents[1] / "stages.yaml")
    assert found["precision",] == "argument"
    assert {key[-1]: found[key] for key in found if "mixture" in key and "decay" in key} == {
        "web": shared,
        "code": "argument",
    }
    assert found["data", "sources"] == "argument"
    assert found["loggers", "wandb", "project"] == shared
    assert found["model", "attn_implementation"] == "default"
    assert found["optimizer", "name"].endswith("yamls/modernbert.yaml")
    values = [line for line in text.splitlines() if not line.endswith(":")]
    assert len(values) == len(found)


def test_what_init_from_fills_in_is_its(tmp_path):
    run = _export(tmp_path)
    found = sources(merged_recipe("yamls/main/continue.yaml", [f"init_from={run}"]))
    assert found["model", "hidden_size"] == f"init_from: {run}"
    assert found["init_from",] == "argument"


def test_secrets_are_not_printed():
    overrides = ["loggers.wandb={init_kwargs: {settings: {api_key: planted-secret-key}}, notes: by planted-secret-key}"]
    text = merged_recipe(NANO, overrides)
    assert "planted" not in text
    shown = yaml.safe_load(text)["loggers"]
    assert shown == without_secrets(load_recipe(NANO, overrides)).loggers


def test_the_command_prints_it_and_takes_no_other_option():
    done = rotary_foundry("plan", "yamls/main/base.yaml", "seed=3", "--recipe")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == merged_recipe("yamls/main/base.yaml", ["seed=3"])
    assert max(len(line) for line in done.stdout.splitlines()) <= 100
    done = rotary_foundry("plan", NANO, "--recipe", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--recipe: prints only the recipe" in done.stderr
