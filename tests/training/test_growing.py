"""A run that begins with another model's weights: `init_from`."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from rotary_foundry import compile_plan, load_model, load_recipe
from rotary_foundry.data.corpus import open_corpus
from rotary_foundry.data.loaders import RunData
from rotary_foundry.interop import open_weights
from rotary_foundry.interop.checkpoint_weights import CheckpointWeights
from rotary_foundry.interop.export import export_checkpoint
from rotary_foundry.recipe import Recipe
from rotary_foundry.runs.run_folder import RunFolder
from rotary_foundry.training.first_weights import check_init_from, first_weights
from rotary_foundry.training.sharding import fill, shard
from rotary_foundry.utils.errors import ConfigurationError
from tests.command import output_of
from tests.models.peers import initialise, tile_all
from tests.ranks import on_ranks

from .conftest import TAMPERED_LAUNCH
from .runs import digests, final_weights, network_of

LARGER = (
    "model.hidden_size=64",
    "model.num_attention_heads=4",
    "model.num_hidden_layers=4",
    "model.intermediate_size=80",
)
REPLICAS = ("fsdp_config.data_parallel_replicate_degree=2", "fsdp_config.activation_checkpointing=true")
KILLED_AT = 6  # updates; with a checkpoint


def tiled(source: Path, recipe: Recipe) -> nn.Module:
    """The grown model, whole, by the definition."""
    family, shape, weights = open_weights(source)
    network = network_of(recipe)
    network.load_state_dict(tile_all(weights, shape, recipe.model.shape, family))
    return network.eval()


@torch.no_grad()
def held_out_loss(network: nn.Module, recipe: Recipe) -> float:
    """Over the held-out rows of the first stage, on one process without Composer."""
    data = RunData(recipe, open_corpus(recipe))
    cross_entropy, masked = 0.0, 0
    for batch in data.eval_loader("pretrain"):
        outputs = network.eval()(batch["input_ids"], batch["cu_seqlens"], batch["row_length"], batch["labels"])
        cross_entropy += outputs.cross_entropy.item()
        masked += outputs.tokens
    return cross_entropy / masked


def _fill_on_shards(recipe: Recipe, expected: dict[str, torch.Tensor]) -> None:
    cpu = torch.device("cpu")
    with torch.device("meta"):
        network = network_of(recipe)
    shard(network, recipe, cpu)
    network.to_empty(device=cpu)
    fill(network, first_weights(recipe))
    found = {name: param.full_tensor() for name, param in network.named_parameters()}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("kind", ["run", "checkpoint", "Hugging Face directory"])
def test_shards_begin_with_their_part_of_the_tiled_weights(tiny, undisturbed, tmp_path, kind):
    source = {
        "run": undisturbed,
        "checkpoint": undisturbed / "checkpoints/ba2",
        "Hugging Face directory": tmp_path / "export",
    }[kind]
    if kind == "Hugging Face directory":
        export_checkpoint(undisturbed, source)
    recipe = load_recipe(tiny.recipe, [*LARGER, f"init_from={source}"])
    on_ranks(2, tmp_path, _fill_on_shards, recipe, dict(tiled(source, recipe).named_parameters()))


@pytest.fixture(scope="module")
def grown(tiny, undisturbed) -> Path:
    """The run folder of a grown run, begun as two replicas that recompute, killed, and finished by one process alone.

    What it grew from was gone by then.
    """
    source = tiny.folder / "runs/source"
    shutil.copytree(undisturbed, source)
    overrides = ("run_name=grown", f"init_from={source}", *LARGER)
    killed = tiny.launch(*overrides, *REPLICAS, script=TAMPERED_LAUNCH, KILL_AT=f"saved:{KILLED_AT}")
    run = tiny.folder / "runs/grown"
    assert len(RunFolder(run).records(RunFolder(run).metrics)) == KILLED_AT, killed.stderr[-4000:]
    shutil.rmtree(source)
    resumed = tiny.launch(*overrides, ranks=1)
    assert resumed.returncode == 0, resumed.stderr[-4000:]
    return run


@pytest.mark.long
def test_a_run_on_replicas_goes_on_alone_to_the_same_end(tiny, undisturbed, grown):
    assert RunFolder(grown).newest_checkpoint().token == compile_plan(load_recipe(tiny.recipe)).total_tokens
    assert digests(grown) == digests(undisturbed)
    assert RunFolder(grown).records(RunFolder(grown).metrics)[-1]["loss"] < 5


@pytest.mark.long
def test_neither_replicas_nor_recomputation_show_in_a_checkpoint(grown, tmp_path):
    checkpoint = grown / f"checkpoints/ba{KILLED_AT}"
    recipe = load_recipe(grown / "recipe.yaml")
    plain = network_of(recipe).state_dict().keys()
    assert CheckpointWeights(checkpoint, recipe.family).keys() == plain
    output_of("export", checkpoint, tmp_path / "export")
    assert load_model(tmp_path / "export").state_dict().keys() == plain


@pytest.mark.long
def test_a_grown_run_is_evaluated_once_before_its_first_update(tiny, undisturbed, grown):
    lines = (grown / "eval.jsonl").read_text().splitlines()
    before, *at_stage_ends = RunFolder(grown).records(RunFolder(grown).evaluations)
    assert len(lines) == 1 + len(at_stage_ends)  # resuming adds none
    assert (before["batch"], before["token"], before["stage"]) == (0, 0, "pretrain")
    assert [record["stage"] for record in at_stage_ends] == ["pretrain", "extend", "decay"]
    recipe = load_recipe(tiny.recipe, LARGER)
    assert before["loss"] == pytest.approx(held_out_loss(tiled(undisturbed, recipe), recipe), rel=1e-5)
    fresh = network_of(recipe)
    initialise(fresh, recipe.seed)
    assert before["loss"] < held_out_loss(fresh, recipe)


@pytest.mark.long
def test_the_summary_tells_the_loss_before_the_first_update_from_that_at_a_stages_end(tiny, grown, tmp_path):
    before, first_stage, *_ = RunFolder(grown).records(RunFolder(grown).evaluations)
    said = f"with the weights of {tiny.folder}/runs/source: {before['loss']:.3f}."
    output = output_of("summary", grown)
    assert said in " ".join(output.split())
    assert f"{first_stage['loss']:.3f}" in output
    begun = tmp_path / "begun"
    begun.mkdir()
    for name in ("recipe.yaml", "plan.json"):
        shutil.copy(grown / name, begun / name)
    (begun / "eval.jsonl").write_text((grown / "eval.jsonl").read_text().splitlines(keepends=True)[0])
    output = output_of("summary", begun)
    assert said in " ".join(output.split())
    assert output.count(f"{before['loss']:.3f}") == 1


@pytest.mark.long
def test_a_killed_grown_run_resumes_to_bit_identical_weights(tiny, undisturbed):
    overrides = (f"init_from={undisturbed}", *LARGER)
    whole = tiny.launch("run_name=grown-whole", *overrides)
    assert whole.returncode == 0, whole.stderr[-4000:]
    tiny.launch("run_name=grown-killed", *overrides, script=TAMPERED_LAUNCH, KILL_AT=f"update:{KILLED_AT + 1}")
    resumed = tiny.launch("run_name=grown-killed", *overrides)
    assert resumed.returncode == 0, resumed.stderr[-4000:]
    expected, found = (final_weights(tiny.folder / "runs" / name) for name in ("grown-whole", "grown-killed"))
    assert expected.keys() == found.keys()
    for name, weight in expected.items():
        assert torch.equal(weight, found[name]), name


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.num_hidden_layers=2", "model.num_hidden_layers: expected at least 3, that of the model"),
        ("model.vocab_size=512", "model.vocab_size: expected 448, that of the model to grow from, got 512"),
    ],
)
def test_what_cannot_be_grown_is_refused_before_a_run_begins(tiny, undisturbed, override, says):
    with pytest.raises(ConfigurationError) as refused:
        check_init_from(load_recipe(tiny.recipe, ["run_name=refused", f"init_from={undisturbed}", override]))
    assert str(refused.value).startswith(f"'init_from': {undisturbed}: {says}")
    assert "\n" not in str(refused.value)
