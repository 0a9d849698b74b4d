"""RoFormerV2 is sharded, recomputed, compiled, grown, killed, resumed, rolled back and looked at as any family."""

import os
from pathlib import Path

import pytest

from rotary_foundry import Recipe, compile_plan, load_recipe
from rotary_foundry.data_prep.statistics import Statistics
from rotary_foundry.evaluation.results import Result
from rotary_foundry.interop.checkpoint_weights import load_checkpoint
from rotary_foundry.interop.huggingface import export_model
from rotary_foundry.reporting.charts import make_charts
from rotary_foundry.reporting.records import Run
from rotary_foundry.runs.record_files import read_lines
from rotary_foundry.runs.run_folder import RunFolder
from rotary_foundry.training.first_weights import first_weights
from tests.command import output_of, rotary_foundry
from tests.data_prep.inspection.tree import write_tree
from tests.forked_composer import composer
from tests.models.peers import masked, pack
from tests.ranks import on_ranks

from .runs import (
    assert_same_run,
    assert_shards_have_the_whole_models_gradients,
    column,
    digests,
    train_killed,
    train_recipe,
)

REPOSITORY = Path(__file__).parents[2]
YAMLS = REPOSITORY / "yamls"
RECIPE = """
extends: [{yamls}/roformer_v2.yaml, {yamls}/models/roformer_v2.yaml]
run_name: whole
runs_folder: {folder}/runs
precision: fp32
progress_bar: false
model: {{vocab_size: 448, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 3, num_attention_heads: 2}}
data: {{local: {folder}/data, sources: [mine, yours], num_workers: 0}}
save_interval: 2ba
rollback: {{at: {{token: 1536tok, to: 1024tok, lr: 5e-3, data: advance}}}}
stages:
  only: {{duration: 2048tok, row_length: 64, global_train_batch_size: 4, device_train_microbatch_size: 2, lr: 1e-2,
     lr_schedule: [[0tok, 0], [512tok, 1], [1024tok, 0.5], [1dur, 0.01]],
     residual_scale: {{start: 0, end: 1, duration: 1280tok}}}}
"""
KILLED_AT = 3  # updates, of 8; its checkpoint is of the second
UNIGRAM_ENTROPY = 9.5  # said to be the corpus's


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("roformer")
    write_tree(folder / "data", word_starts=True)
    Statistics({}, "", "", 448, UNIGRAM_ENTROPY, {}).write(folder / "data")
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(folder=folder, yamls=YAMLS))
    return path


def _gradients_of_shards(recipes: list[Recipe]) -> None:
    """Compare a sharded network's loss and gradients with those of the whole one, at a scale inside the ramp."""
    input_ids, cu_seqlens = pack(40, 7, 60)

    def loss(network):
        network.set_knob("residual_scale", 0.5)
        network.set_knob("hidden_dropout", 0.0)
        return network(input_ids, cu_seqlens, labels=masked(input_ids)).cross_entropy

    for recipe in recipes:
        assert_shards_have_the_whole_models_gradients(recipe, loss)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_shards_have_the_whole_models_gradients_recomputed_traced_and_grown(recipe, tmp_path):
    small = load_recipe(recipe)
    weights = {name: first_weights(small)(name) for name in small.model.shape.parameter_shapes()}
    knobs = {"rope_theta": 10_000.0, "residual_scale": 1.0}
    tokenizer = recipe.parent / "data/tokenizer"
    export_model(weights, small.family, small.model.shape, knobs, tokenizer, 64, tmp_path / "small")
    grown = [f"init_from={tmp_path}/small", "model.hidden_size=64", "model.num_attention_heads=4"]
    changes = (
        ["fsdp_config.activation_checkpointing=true"],
        ["compile_config={dynamic: true, backend: aot_eager}"],
        [*grown, "model.num_hidden_layers=5", "model.intermediate_size=80"],
    )
    on_ranks(2, tmp_path, _gradients_of_shards, [load_recipe(recipe, change) for change in changes])


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory) -> RunFolder:
    """The folder of the run that nothing disturbed but its rollback."""
    on_ranks(1, tmp_path_factory.mktemp("ranks"), train_recipe, recipe, [])
    return RunFolder(recipe.parent / "runs/whole")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_ramp_of_the_residual_scale_is_the_plans_and_exact_under_kill_rollback_and_rescale(recipe, whole, tmp_path):
    """With LAMB, a learning rate of lines and masks of whole words."""
    runs = recipe.parent / "runs"
    scales, plan = column(runs / "whole", "residual_scale"), compile_plan(load_recipe(recipe))
    assert scales == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1])
    assert (scales[0], scales[5:]) == (0, [1, 1, 1])  # exactly
    assert [plan.at(256 * update).knobs["residual_scale"] for update in range(8)] == scales
    train_killed(recipe, KILLED_AT, tmp_path)
    assert load_checkpoint(runs / "killed").knobs["residual_scale"] == scales[1]  # of the last update that is saved
    on_ranks(1, tmp_path, train_recipe, recipe, ["run_name=killed"])
    assert_same_run(runs / "killed", runs / "whole")
    for ranks, name in ((1, "one"), (2, "two")):  # without dropout, which each rank draws for its own rows
        on_ranks(ranks, tmp_path, train_recipe, recipe, [f"run_name={name}", "model.hidden_dropout=0"])
    assert digests(runs / "two") == digests(runs / "whole")
    for key in ("residual_scale", "lr"):
        assert column(runs / "two", key) == column(runs / "whole", key)
    assert column(runs / "two", "loss") == pytest.approx(column(runs / "one", "loss"), rel=1e-5)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_run_that_was_rolled_back_is_reported_exported_and_evaluated(recipe, whole):
    (back,) = read_lines(whole.ledger)
    assert (back["token"], back["to_token"], back["lr"], back["data"]) == (1536, 1024, 5e-3, "advance")
    written = read_lines(whole.metrics)
    abandoned = [line for line in written if line["rollbacks"] == 0 and line["batch"] > back["to_batch"]]
    again = [line for line in written if line["rollbacks"] == 1][: len(abandoned)]
    for key in ("batch", "residual_scale"):
        assert [line[key] for line in abandoned] == [line[key] for line in again], key
    assert not {line["rows_digest"] for line in abandoned} & {line["rows_digest"] for line in again}
    assert [line["lr"] for line in again] == pytest.approx([line["lr"] / 2 for line in abandoned])  # the peak was 1e-2

    plan = words(output_of("plan", recipe))
    assert "512 tokens more: up to 1,536, then back to 1,024" in plan
    assert plan.count("0.8 → 1 ") == 2  # residual_scale before and after
    checked = rotary_foundry("doctor", recipe).stdout
    data = recipe.parent / "data"
    assert f"{data}: the tokenizer, manifests and indexes of every stage".replace(" ", "") in "".join(checked.split())

    output_of("export", whole.path, whole.export)
    (held_out,) = whole.records(whole.evaluations)
    summary = words(output_of("summary", whole.path))
    assert f"The last held-out loss, {held_out['loss']:.3f}, is" in summary
    assert summary.count("; in the text: ") == 3  # what the export puts in the place of a mask

    output_of("report", whole.path)
    assert "residual_scale" in (whole.path / "report.html").read_text()
    (chart,) = [chart for chart in make_charts([Run(whole.path)]) if chart.key == "residual_scale"]
    drawn = {series.abandoned: set(series.mean.tolist()) for series in chart.series}
    assert drawn == {False: set(column(whole.path, chart.key)), True: {line[chart.key] for line in abandoned}}

    given = [f"data={data}", "documents=20", "resamples=20", f"out={whole.path}/measured"]
    output_of("evaluate", whole.path, "masked_lm", *given, "--beside", whole.export)
    results = [Result.read(path) for path in sorted((whole.path / "measured").glob("*/masked_lm/result.json"))]
    ours, exported = ([str(row) for row in result.rows] for result in results)
    assert ours == exported


def words(text: str) -> str:
    """Undo the line breaks of a table."""
    return " ".join(text.split())


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_rehearsal_has_every_transition_of_the_recipe(recipe):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = ["-n", "1", str(REPOSITORY / "launch"), str(recipe), "rehearse=true"]
    done = composer(arguments, REPOSITORY, environment, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "transitions went as planned" in done.stdout
    for what in ("residual_scale 0 → ", "rollback 1", "evaluation after only", "export for transformers"):
        assert what in done.stdout
