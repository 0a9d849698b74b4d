"""A family and an objective are a module and a line in a table each: nothing else of the package changes for them."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from rotary_foundry import compile_plan, load_recipe
from rotary_foundry.cli import app
from rotary_foundry.data.corpus import open_corpus
from rotary_foundry.models.family import FAMILIES, find_family
from rotary_foundry.objectives.objective import OBJECTIVES
from rotary_foundry.recipe.compilation import compile_stages
from rotary_foundry.training.run import train
from rotary_foundry.utils.errors import ConfigurationError
from tests.data_prep.inspection.tree import write_tree
from tests.models import second_family
from tests.ranks import on_ranks

YAMLS = Path(__file__).parents[2] / "yamls"
RECIPE = """
extends: [shared.yaml]
run_name: tiny
runs_folder: {folder}/runs
precision: fp32
progress_bar: false
objective: {{name: next_token}}
model: {{family: tiny, vocab_size: 448, width: 32, heads: 4, layers: 2, residual_scale: 0.5}}
data: {{local: {folder}/data, sources: [mine, yours], num_workers: 0}}
save_interval: 10ba
stages:
  only: {{duration: 512tok, row_length: 64, rope_theta: {{start: 500, end: 1000}}, global_train_batch_size: 4,
     device_train_microbatch_size: 2, lr: 1e-3}}
"""


def enter() -> None:
    FAMILIES.update(second_family.FAMILIES)
    OBJECTIVES.update(second_family.OBJECTIVES)


@pytest.fixture(autouse=True)
def entered(monkeypatch):
    for table, lines in ((FAMILIES, second_family.FAMILIES), (OBJECTIVES, second_family.OBJECTIVES)):
        for name, place in lines.items():
            monkeypatch.setitem(table, name, place)
    yield


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tree(folder / "data")
    path = folder / "tiny.yaml"
    shared = yaml.safe_load((YAMLS / "modernbert.yaml").read_text())
    del shared["objective"], shared["precision"]
    (folder / "shared.yaml").write_text(yaml.safe_dump(shared))
    path.write_text(RECIPE.format(folder=folder))
    return path


def _train(path: Path) -> None:
    enter()
    recipe = load_recipe(path)
    train(recipe, compile_stages(recipe), open_corpus(recipe))


def test_it_is_loaded_and_planned_and_its_parameters_and_operations_counted(recipe):
    loaded = load_recipe(recipe)
    shape = loaded.model.shape
    assert shape == second_family.Shape(vocab_size=448, width=32, heads=4, layers=2)
    network = find_family("tiny").network(shape, {"rope_theta": 500.0, "residual_scale": 0.5})
    assert shape.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert list(shape.parameter_shapes()) == list(network.state_dict())
    plan = compile_plan(loaded)
    assert [plan.at(token).knobs for token in (0, 256)] == [
        {"rope_theta": 500.0, "residual_scale": 0.5},
        {"rope_theta": 750.0, "residual_scale": 0.5},
    ]
    said = CliRunner().invoke(app, ["plan", str(recipe)])
    assert said.exit_code == 0, said.exception
    assert f"{shape.parameters:,} parameters" in said.output


def test_it_trains_is_evaluated_and_its_records_have_its_knobs(recipe, tmp_path):
    on_ranks(1, tmp_path, _train, recipe)
    run = recipe.parent / "runs/tiny"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["batch"], line["rope_theta"], line["residual_scale"]) for line in lines] == [
        (1, 500.0, 0.5),
        (2, 750.0, 0.5),
    ]
    assert all(abs(line["loss"] - math.log(448)) < 0.2 and "masked_accuracy" not in line for line in lines)
    (evaluation,) = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    assert evaluation["loss"] < 7 and evaluation["stage"] == "only"
    refused = CliRunner().invoke(app, ["export", str(run), str(tmp_path / "out")])
    assert "no Hugging Face form" in str(refused.exception)
    assert not (tmp_path / "out").exists()


@torch.no_grad()
def test_a_token_of_it_sees_none_after_it_and_no_other_document():
    shape = second_family.Shape(vocab_size=50, width=16, heads=2, layers=2)
    network = second_family.Decoder(shape, {"rope_theta": 500.0, "residual_scale": 1.0})
    ids, ends = torch.arange(20), torch.tensor([0, 8, 20], dtype=torch.int32)
    changed = ids.clone()
    changed[14:] = 3
    before, after = network(ids, ends), network(changed, ends)
    assert torch.equal(before[:14], after[:14]) and not torch.equal(before[14:], after[14:])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.family=tinny", "'model.family': 'tinny' is not a model family; did you mean 'tiny'?"),
        (
            "model.family=gpt2",
            "'model.family': 'gpt2' is not a model family; known here are modernbert, roformer_v2, llama, tiny",
        ),
        ("model.heads=5", "'model.heads': 5 heads of an even size do not divide a width of 32"),
        ("model.num_hidden_layers=3", "unknown key 'model.num_hidden_layers'"),
        ("model.residual_scale=null", "'model.residual_scale' is required and not given"),
        ("model.residual_scale=3", "'model.residual_scale': 3 is not a number in (0, 2)"),
        ("stages.only.rope_theta=null", "'stages.only.rope_theta' is required and not given"),
        (
            "stages.only.residual_scale={start: 1, end: 9}",
            "'stages.only.residual_scale': end: 9 is not a number in (0, 2)",
        ),
        (
            "stages.only.residual_scale={start: 1}",
            "'stages.only.residual_scale': a schedule needs start and end; 'end' is missing",
        ),
        ("stages.only.local_rope_theta=5", "unknown key 'stages.only.local_rope_theta'"),
        ("stages.only.mlm_probability=0.3", "'stages.only.mlm_probability': neither tiny nor next_token has it"),
        ("objective.name=next_tokens", "'objective.name': 'next_tokens' is not known; did you mean 'next_token'?"),
        ("objective.mask_share=0.8", "unknown key 'objective.mask_share'"),
    ],
)
def test_what_it_has_not_is_refused_by_key(recipe, override, says):
    with pytest.raises(ConfigurationError) as refused:
        load_recipe(recipe, [override])
    assert says in str(refused.value)


def test_a_causal_objective_on_a_family_that_sees_both_ways_is_refused_by_key():
    with pytest.raises(ConfigurationError, match=r"'stages\.decay\.objective\.name': 'next_token' needs attention to"):
        load_recipe(YAMLS / "main/nano.yaml", ["stages.decay.objective=next_token"])
