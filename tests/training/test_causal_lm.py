"""A tiny Llama trained on the next token: gradients, a killed and resumed run, an export that transformers opens."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, LlamaForCausalLM
from typer.testing import CliRunner

from rotary_foundry import compile_plan, load_recipe
from rotary_foundry.cli import app
from rotary_foundry.data.corpus import open_corpus
from rotary_foundry.data.loaders import RunData
from rotary_foundry.interop import load_model
from rotary_foundry.runs.record_files import read_lines
from rotary_foundry.runs.run_folder import RunFolder
from rotary_foundry.training.first_weights import first_weights
from rotary_foundry.training.run import Start, build_trainer
from rotary_foundry.training.sharding import fill
from tests.data_prep.inspection.tree import write_tree
from tests.models.llama.peers import their_logits
from tests.ranks import on_ranks

from .runs import assert_killed_and_on_two_ranks_the_same, network_of, records, train_recipe
from .test_gradients import SaveGradients

YAMLS = Path(__file__).parents[2] / "yamls"
RECIPE = """
extends: [{yamls}/llama.yaml, {yamls}/models/llama_nano.yaml]
run_name: whole
runs_folder: {folder}/runs
precision: fp32
progress_bar: false
model: {{vocab_size: 384, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, num_attention_heads: 4}}
data: {{local: {folder}/data, sources: [mine, yours], num_workers: 0}}
save_interval: 2ba
stages:
  short: {{duration: 2048tok, row_length: 64, global_train_batch_size: 8, device_train_microbatch_size: 4, lr: 1e-2,
     t_warmup: 0.3dur}}
  long: {{duration: 1024tok, row_length: 256, global_train_batch_size: 2, device_train_microbatch_size: 1, lr: 1e-3,
     rope_theta: 50_000, t_decay: 1dur, decay_shape: cosine, alpha_f: 0.1}}
"""
NO_MASK = "objective.document_mask=false"
MICROBATCH = "stages.short.device_train_microbatch_size={}"
UPDATES = {  # by world size, of 8 rows
    1: {"all rows at once": [MICROBATCH.format(8)], "uneven microbatches, no mask": [MICROBATCH.format(3), NO_MASK]},
    2: {"microbatches": [MICROBATCH.format(2)], "microbatches, no mask": [MICROBATCH.format(2), NO_MASK]},
}
KILLED_AT = 3  # updates, of 6; its checkpoint is of the second


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    write_tree(folder / "data", causal=True)
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(folder=folder, yamls=YAMLS))
    return path


def _make_updates(path: Path, updates: dict[str, list[str]], folder: Path) -> None:
    for name, overrides in updates.items():
        recipe = load_recipe(path, [*overrides, "optimizer.max_grad_norm=null"])
        data = RunData(recipe, open_corpus(recipe))
        trainer = build_trainer(recipe, data, RunFolder(folder), Start(compile_plan(recipe), [], None))
        trainer.state.callbacks.append(SaveGradients(folder / f"{name}.pt"))
        trainer.fit()
        trainer.close()


def _expected(path: Path, document_mask: bool) -> tuple[float, dict[str, torch.Tensor]]:
    """The first update by plain autograd: the mean over every token but the first of a document."""
    recipe = load_recipe(path)
    batch = next(iter(RunData(recipe, open_corpus(recipe)).train_loader(compile_plan(recipe), 0)))
    ends = batch["cu_seqlens"] if document_mask else torch.tensor([0, *batch["row_tokens"]]).cumsum(0).int()
    network = network_of(recipe)
    fill(network, first_weights(recipe))
    logits = network(batch["input_ids"], ends)
    firsts = batch["cu_seqlens"][:-1].long()
    later = torch.ones(len(logits), dtype=torch.bool).index_fill(0, firsts, False).nonzero().squeeze(1)
    loss = F.cross_entropy(logits[later - 1], batch["input_ids"][later])
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("world", UPDATES)
def test_loss_and_gradient_of_an_update_are_the_same_on_any_ranks_and_microbatches(recipe, tmp_path, world):
    on_ranks(world, tmp_path, _make_updates, recipe, UPDATES[world], tmp_path)
    for name in UPDATES[world]:
        loss, gradients = torch.load(tmp_path / f"{name}.pt")
        expected_loss, expected = _expected(recipe, document_mask="no mask" not in name)
        assert loss == pytest.approx(expected_loss, rel=1e-5), name
        for parameter, gradient in expected.items():
            error = (gradients[parameter] - gradient).norm()
            assert error <= 1e-5 * gradient.norm(), (name, parameter)


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory) -> Path:
    """The folder of a run on one rank that nothing disturbed."""
    on_ranks(1, tmp_path_factory.mktemp("ranks"), train_recipe, recipe, [])
    return recipe.parent / "runs/whole"


@torch.no_grad()
def test_a_run_learns_and_its_export_is_transformers_llama_with_the_same_logits(recipe, whole, tmp_path):
    lines = records(whole)
    assert [line["rope_theta"] for line in lines] == 4 * [10_000] + 2 * [50_000]
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5 and 0 <= lines[0]["accuracy"] < lines[-1]["accuracy"] < 1
    evaluations = [(line["stage"], line["loss"] > 0, line["accuracy"] > 0) for line in read_lines(whole / "eval.jsonl")]
    assert evaluations == [("short", True, True), ("long", True, True)]
    exported = CliRunner().invoke(app, ["export", str(whole), str(tmp_path / "out")])
    assert exported.exit_code == 0, exported.exception
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (theirs.config.bos_token_id, theirs.config.eos_token_id, theirs.config.pad_token_id) == (0, 1, 2)
    assert (theirs.config.rope_parameters["rope_theta"], theirs.config.max_position_embeddings) == (50_000, 256)
    loaded = load_recipe(recipe)
    batch = next(iter(RunData(loaded, open_corpus(loaded)).eval_loader("long")))
    given = batch["input_ids"], batch["cu_seqlens"]
    ours = load_model(tmp_path / "out")
    torch.testing.assert_close(their_logits(theirs, *given), ours(*given), rtol=0, atol=1e-4)
    assert tokenizer("the window").input_ids[0] == batch["input_ids"][0] == tokenizer.bos_token_id
    card = (tmp_path / "out/README.md").read_text()
    assert "pipeline_tag: text-generation" in card and "Causal LM: each token but a document's first" in card


@pytest.mark.long
def test_a_killed_run_resumes_to_the_same_bits_and_two_ranks_see_the_same_rows(recipe, whole, tmp_path):
    assert_killed_and_on_two_ranks_the_same(recipe, whole, KILLED_AT, tmp_path)
