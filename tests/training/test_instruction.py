"""A tiny Llama tuned on conversations: gradients on any ranks and microbatches, and a killed and resumed run."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from rotary_foundry import compile_plan, load_recipe
from rotary_foundry.data.corpus import open_corpus
from rotary_foundry.data.loaders import RunData
from rotary_foundry.data.rows import Manifest
from rotary_foundry.data_prep.inspection.trace import trace
from rotary_foundry.objectives.objective import IGNORE_INDEX
from rotary_foundry.training.first_weights import first_weights
from rotary_foundry.training.sharding import fill
from rotary_foundry.utils.errors import DataError
from tests.data_prep.inspection.tree import write_tree
from tests.ranks import on_ranks

from .runs import assert_killed_and_on_two_ranks_the_same, network_of, records, train_killed, train_recipe
from .test_causal_lm import MICROBATCH, RECIPE, YAMLS, _make_updates

OBJECTIVE = """
objective: {name: instruction, target_prompts: "length>=30", prompt_loss_weight: 0.25}
"""
ROWS = "objective.mean=rows"
UPDATES = {  # by world size, of 8 rows
    1: {"uneven microbatches": [MICROBATCH.format(3)], "means of rows": [MICROBATCH.format(3), ROWS]},
    2: {"microbatches": [MICROBATCH.format(2)], "means of rows": [MICROBATCH.format(2), ROWS]},
}
KILLED_AT = 3


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("instruction")
    write_tree(folder / "data", causal=True, responses=True)
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(folder=folder, yamls=YAMLS) + OBJECTIVE)
    return path


def _expected(path: Path, by_rows: bool) -> tuple[float, dict[str, torch.Tensor]]:
    """The first update by plain autograd, from the rows' columns."""
    recipe = load_recipe(path)
    batch = next(iter(RunData(recipe, open_corpus(recipe)).train_loader(compile_plan(recipe), 0)))
    network = network_of(recipe)
    fill(network, first_weights(recipe))
    logits = network(batch["input_ids"], batch["cu_seqlens"])
    losses = F.cross_entropy(logits, batch["labels"], reduction="none", ignore_index=IGNORE_INDEX)
    weights = torch.where(batch["scored"], 1.0, 0.25) * (batch["labels"] != IGNORE_INDEX)
    assert 0 < batch["scored"].sum() < (weights > 0).sum() < len(weights)
    if by_rows:
        each = zip(losses.split(batch["row_tokens"]), weights.split(batch["row_tokens"]), strict=True)
        loss = torch.stack([(of_row * weight).sum() / weight.sum() for of_row, weight in each]).mean()
    else:
        loss = (losses * weights).sum() / weights.sum()
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("world", UPDATES)
def test_loss_and_gradient_of_an_update_are_its_weighted_mean_on_any_ranks_and_microbatches(recipe, tmp_path, world):
    on_ranks(world, tmp_path, _make_updates, recipe, UPDATES[world], tmp_path)
    for name, overrides in UPDATES[world].items():
        loss, gradients = torch.load(tmp_path / f"{name}.pt")
        expected_loss, expected = _expected(recipe, by_rows=ROWS in overrides)
        assert loss == pytest.approx(expected_loss, rel=1e-5), name
        for parameter, gradient in expected.items():
            error = (gradients[parameter] - gradient).norm()
            assert error <= 1e-5 * gradient.norm(), (name, parameter)


def test_rows_of_plain_texts_are_refused_with_the_key_that_makes_conversations(recipe, tmp_path):
    write_tree(tmp_path / "data", causal=True)
    says = r"no column 'responses', which 'objective' needs; .* with `conversations:` for this source"
    with pytest.raises(DataError, match=says):
        open_corpus(load_recipe(recipe, [f"data.local={tmp_path}/data"]))


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory) -> Path:
    """The folder of a run on one rank that nothing disturbed."""
    on_ranks(1, tmp_path_factory.mktemp("ranks"), train_recipe, recipe, [])
    return recipe.parent / "runs/whole"


def test_a_run_learns_and_its_records_say_what_prompts_weigh(whole):
    lines = records(whole)
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5
    assert 0 <= lines[0]["response_accuracy"] < lines[-1]["response_accuracy"] < 1
    assert {line["prompt_loss_weight"] for line in lines} == {0.25}


@pytest.mark.long
def test_a_killed_run_resumes_to_the_same_bits_and_two_ranks_see_the_same_rows(recipe, whole, tmp_path):
    assert_killed_and_on_two_ranks_the_same(recipe, whole, KILLED_AT, tmp_path)


@pytest.mark.long
def test_a_run_that_is_killed_and_goes_on_on_two_ranks_draws_every_row_once(recipe, tmp_path):
    """Each draw is compared with the digest that the ranks recorded of it."""
    there = Manifest.read(recipe.parent / "data/mine/64/train").rows
    updates, path = -(-there // 8), tmp_path / "recipe.yaml"
    path.write_text(
        f"extends: [{recipe}]\nruns_folder: {tmp_path}/runs\ndata: {{sources: [mine]}}\n"
        f"stages: {{short: {{duration: {updates}ba}}, long: {{duration: 1ba}}}}\n"
    )
    train_killed(path, KILLED_AT, tmp_path)
    on_ranks(2, tmp_path, train_recipe, path, ["run_name=killed"])
    drawn = [row.row for update in range(1, updates + 1) for row in trace(tmp_path / "runs/killed", update).rows]
    assert sorted(drawn[:there]) == list(range(there))
