"""A tiny RoFormerV2 in a multi-task stage: every rule's gradient on any ranks, and a killed and resumed run."""

import io
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from composer.core import Callback
from rich.console import Console

from rotary_foundry import compile_plan, load_recipe
from rotary_foundry.data.batches import split
from rotary_foundry.data.corpus import keep_rows, open_corpus
from rotary_foundry.data.loaders import RunData
from rotary_foundry.data.rows import Manifest
from rotary_foundry.data.task_file import Task
from rotary_foundry.data_prep.corpus_config import CorpusConfig, TokenizerConfig, TrainTokenizer
from rotary_foundry.data_prep.inspection.trace import trace
from rotary_foundry.data_prep.pipeline import prepare
from rotary_foundry.data_prep.readers import SourceConfig
from rotary_foundry.doctor.finding import BAD, DOUBTFUL, GOOD
from rotary_foundry.doctor.task_checks import check_tasks
from rotary_foundry.evaluation import task_metrics
from rotary_foundry.interop import load_model
from rotary_foundry.interop.export import export_checkpoint
from rotary_foundry.loggers.metric_keys import X_AXIS
from rotary_foundry.models.task_heads import HEADS, attach_heads
from rotary_foundry.objectives.multi_task import COMBINE
from rotary_foundry.optim.task_weights import min_norm_weights, projected_weights, single_weight
from rotary_foundry.recipe.compilation import compile_stages
from rotary_foundry.recipe.rehearsal import rehearsal
from rotary_foundry.reporting.charts import make_charts
from rotary_foundry.reporting.plan_table import print_plan
from rotary_foundry.reporting.records import Run
from rotary_foundry.reporting.summary import task_table
from rotary_foundry.reporting.transitions import print_transitions
from rotary_foundry.runs.record_files import read_lines
from rotary_foundry.runs.run_folder import RunFolder
from rotary_foundry.training.first_weights import first_weights
from rotary_foundry.training.rehearsal_stand_ins import with_stand_ins
from rotary_foundry.training.rehearsal_tasks import KINDS, rehearsal_tasks, text_source
from rotary_foundry.training.run import Start, _check_heads, build_trainer, train
from rotary_foundry.training.sharding import fill
from rotary_foundry.utils.errors import ConfigurationError, DataError, FoundryError
from tests.data_prep.small_corpus import sentences, write_jsonl
from tests.ranks import on_ranks
from tests.task_corpus import ROWS, TASKS, write_tasks
from tests.wandb_file import read_back

from .runs import assert_killed_and_on_two_ranks_the_same, digests, network_of, records, train_recipe

YAMLS = Path(__file__).parents[2] / "yamls"
RECIPE = """
extends: [{yamls}/roformer_v2.yaml, {yamls}/models/roformer_v2_small.yaml]
run_name: whole
runs_folder: {folder}/runs
precision: fp32
progress_bar: false
model: {{vocab_size: 384, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, num_attention_heads: 2,
  residual_scale: 1, hidden_dropout: 0}}
objective: {{whole_words: false}}
optimizer: {{name: adamw, betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.01, max_grad_norm: null}}
data: {{local: {folder}/data, sources: [text, topic, score, pick, find, names], num_workers: 0}}
save_interval: 2ba
stages:
  text: {{duration: 1024tok, row_length: 64, global_train_batch_size: 8, device_train_microbatch_size: 4, lr: 1e-2,
     mixture: {{text: 1.0}}}}
  tasks: {{duration: 9216tok, row_length: 64, global_train_batch_size: 24, device_train_microbatch_size: 3, lr: 1e-2,
     objective: {{name: multi_task, combine: mean, rows_per_block: 4, mlm_probability: 0.15, eval_mlm_probability: 0.15,
       mask_share: 0.8, random_share: 0.1, input_noise: 0.15}}}}
"""
LONGER = """stages.longer={duration: 4608tok, row_length: 128, global_train_batch_size: 12,
  device_train_microbatch_size: 2, lr: 3e-3, objective: {name: multi_task, combine: normalised, rows_per_block: 4,
  mlm_probability: 0.15, eval_mlm_probability: 0.15, mask_share: 0.8, random_share: 0.1}}"""
ROLLED_BACK = "rollback.at={token: 7168tok, to: 4096tok, lr: 5e-3}"
SHARDED = [
    "fsdp_config={data_parallel_replicate_degree: 2, data_parallel_shard_degree: 2, activation_checkpointing: true}",
    "compile_config={dynamic: true, backend: aot_eager}",
]
KILLED_AT = 5  # updates, of 8; its checkpoint is of the fourth


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    write_tasks(folder / "data", row_lengths=(64, 128))
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(folder=folder, yamls=YAMLS))
    return path


class SaveGradients(Callback):
    """Saves the whole gradients of the multi-task stage's first update on rank 0, and ends training."""

    def __init__(self, file: Path):
        self.file = file

    def batch_end(self, state, logger):
        if state.dataloader_label != "tasks":
            return
        gradients = {
            name: param.grad.full_tensor()
            for name, param in state.model.network.named_parameters()
            if param.grad is not None
        }
        if torch.distributed.get_rank() == 0:
            torch.save(gradients, self.file)
        state.stop_training()


def _without_first_stage(path: Path, combine: str):
    recipe = load_recipe(path, [f"stages.tasks.objective.combine={combine}"])
    recipe.stages.pop("text")
    return recipe


def _make_updates(path: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    for combine in COMBINE:
        recipe = _without_first_stage(path, combine)
        start = Start(compile_plan(recipe), [], None)
        trainer = build_trainer(recipe, RunData(recipe, open_corpus(recipe)), RunFolder(folder), start)
        trainer.state.callbacks.append(SaveGradients(folder / f"{combine}.pt"))
        trainer.fit()
        trainer.close()


@pytest.fixture(scope="module")
def task_gradients(recipe) -> dict[str, tuple[float, float, torch.Tensor, dict[str, torch.Tensor]]]:
    """Of the first update, by plain autograd: each task's share of the blocks, loss, gradients at output and of all."""
    loaded = _without_first_stage(recipe, "mean")
    data = RunData(loaded, open_corpus(loaded))
    batch = next(iter(data.train_loader(compile_plan(loaded), 0)))
    network = network_of(loaded)
    attach_heads(network, data.tasks)
    at_output = []
    network.on_output_gradient = at_output.append
    fill(network, first_weights(loaded, network))
    found = {}
    for of_task in split(batch, 24):
        sums = data.objectives["tasks"].loss(network, of_task)
        loss = sums.cross_entropy / sums.tokens
        network.zero_grad()
        loss.backward()
        gradients = {name: param.grad for name, param in network.named_parameters() if param.grad is not None}
        share = len(of_task["row_sources"]) / 24
        found[of_task["row_sources"][0]] = share, loss.item(), at_output.pop(), gradients
    assert len(found) > 3 and "text" in found
    return found


def _expected(combine: str, tasks: dict, seed: int) -> dict[str, torch.Tensor]:
    names = {name for *_, gradients in tasks.values() for name in gradients}
    shared = sorted(name for name in names if not name.startswith(HEADS))
    size = {name: gradient for *_, gradients in tasks.values() for name, gradient in gradients.items()}
    vectors = torch.stack(
        [
            torch.cat([gradients.get(name, torch.zeros_like(size[name])).flatten() for name in shared])
            for *_, gradients in tasks.values()
        ]
    ).double()
    gram = (vectors @ vectors.T).numpy()
    generator = np.random.default_rng((seed, 0))
    if combine == "min_norm":
        weights = min_norm_weights(gram)
    elif combine == "min_norm_at_output":
        outputs = torch.block_diag(*(at_output.flatten() for _, _, at_output, _ in tasks.values())).double()
        weights = min_norm_weights((outputs @ outputs.T).numpy())
    elif combine == "projected":
        weights = projected_weights(gram, [generator.permutation(len(tasks)) for _ in tasks])
    else:
        norms = vectors.norm(dim=1).tolist()
        facts = zip(tasks.values(), norms, strict=True)
        weights = np.array([single_weight(combine, share, norm, loss) for (share, loss, *_), norm in facts])
    combined = torch.from_numpy(weights) @ vectors
    expected = dict(zip(shared, combined.float().split([size[name].numel() for name in shared]), strict=True))
    of_heads = {name: size[name].flatten() for name in names if name.startswith(HEADS)}
    return expected | of_heads


@pytest.mark.parametrize("world", [pytest.param(1, marks=pytest.mark.long), 2, pytest.param(4, marks=pytest.mark.long)])
def test_the_gradient_of_every_rule_is_that_of_whole_tensors_on_any_ranks(recipe, task_gradients, tmp_path, world):
    on_ranks(world, tmp_path, _make_updates, recipe, tmp_path)
    for combine in COMBINE:
        made = torch.load(tmp_path / f"{combine}.pt")
        expected = _expected(combine, task_gradients, seed=17)
        assert made.keys() == expected.keys()
        scale = torch.cat([gradient for name, gradient in expected.items() if not name.startswith(HEADS)]).norm()
        for name, gradient in expected.items():
            error = (made[name].flatten() - gradient).norm()
            assert error <= 1e-5 * (gradient.norm() if name.startswith(HEADS) else scale), (combine, name)


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory) -> Path:
    """The folder of a run on one rank that nothing disturbed."""
    wandb = "loggers.wandb={project: tasks, init_kwargs: {mode: offline}}"
    on_ranks(1, tmp_path_factory.mktemp("ranks"), train_recipe, recipe, [wandb])
    return recipe.parent / "runs/whole"


def test_a_run_records_its_tasks_and_its_network_loads_without_the_heads(whole):
    lines = [line for line in records(whole) if line["stage"] == "tasks"]
    assert len(lines) == 6
    for line in lines:
        assert set(line["task_loss"]) == set(line["rows_by_source"]) <= set(TASKS)
        assert sum(line["task_weight"].values()) == pytest.approx(1)
        for of_run, of_task in (("loss", "task_loss"), ("examples_right", "task_right")):
            means = [line[of_task][task] * rows / 24 for task, rows in line["rows_by_source"].items()]
            assert line[of_run] == pytest.approx(sum(means), rel=1e-6)
        assert all(norm > 0 for norm in line["task_grad_norm"].values())
        assert line["task_cosine_estimate"].keys() == line["task_loss"].keys()
        assert line["mixture"] is None  # the plan's; the weights are in `asked`
    of_text, of_tasks = read_lines(whole / "eval.jsonl")
    assert {f"loss/{task}" for task in TASKS} <= of_tasks.keys() and "loss/topic" not in of_text
    assert all(0 <= of_tasks[f"examples_right/{task}"] <= 1 for task in TASKS)
    total = sum(task.weight for task in TASKS.values())
    means = [of_tasks[f"loss/{name}"] * task.weight / total for name, task in TASKS.items()]
    assert of_tasks["loss"] == pytest.approx(sum(means))
    assert not [name for name, _ in load_model(whole).named_parameters() if name.startswith(HEADS)]


def test_the_suite_tasks_measures_what_training_did_on_every_held_out_row(whole):
    found = task_metrics.run(whole, task_metrics.Config("tasks", resamples=20))
    assert [row.labels["task"] for row in found.rows] == list(TASKS)
    of_training = read_lines(whole / "eval.jsonl")[-1]
    for row in found.rows:
        task = row.labels["task"]
        assert row.labels["rows"] == ROWS["validation"] and row.labels["examples"] > 0
        assert row.measures["loss"].value == pytest.approx(of_training[f"loss/{task}"], rel=1e-5)
        assert row.measures["right"].value == pytest.approx(of_training[f"examples_right/{task}"], abs=1e-6)
        assert ("span_f1" in row.measures) == (task == "names")
    assert found.headlines[-1].name == "names: span_f1"  # the last task's, and compared with another model's


def test_the_suite_tasks_refuses_by_file_what_the_data_no_longer_has(recipe, whole, tmp_path):
    data = shutil.copytree(recipe.parent / "data", tmp_path / "data")
    config = task_metrics.Config("tasks", data=str(data))
    shutil.rmtree(data / "find/64/validation")
    with pytest.raises(DataError, match=r"find/64/validation: no held-out rows of 'find' there"):
        task_metrics.check(whole, config)
    (data / "find/task.json").unlink()
    with pytest.raises(DataError, match=r"find/task\.json: no such file, so 'find' is no task"):
        task_metrics.check(whole, config)
    with pytest.raises(DataError, match=r"^data: .*none: no such folder"):
        task_metrics.check(whole, task_metrics.Config("tasks", data=str(tmp_path / "none")))
    with pytest.raises(ConfigurationError, match="was not trained in a multi-task stage"):
        task_metrics.check(whole / "checkpoints/ba2", config)  # before the first update of it


def test_trace_finds_the_rows_of_every_task_and_the_plan_tells_their_shares(recipe, whole):
    for update, line in enumerate(records(whole), 1):
        traced = trace(whole, update)  # refuses rows whose digest is not the recorded one
        assert Counter(row.source for row in traced.rows) == line["rows_by_source"]
    loaded = load_recipe(recipe)
    console = Console(file=io.StringIO(), width=300)
    print_plan(loaded, compile_plan(loaded), console=console)
    said = console.file.getvalue()
    table = {name: line.split() for line in said.splitlines() for name in line.split()[:1]}
    assert table["topic"] == ["topic", "classification", "40", "25.0%", "1.5", "0.9"]  # 6 updates of 6 blocks of 4 rows
    assert table["names"] == ["names", "entities", "40", "12.5%", "0.75", "0.45"]
    assert "tasks: the tasks' weights" in said


def test_a_rehearsal_has_blocks_that_its_processes_divide(recipe):
    loaded = load_recipe(recipe)
    small = rehearsal(loaded, compile_stages(loaded), 3)
    assert small.objective_of("tasks").block_size == 3
    assert small.stages["tasks"].global_train_batch_size % 3 == 0


OBJECTIVE = "stages.tasks.objective.{}"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (OBJECTIVE.format("combine=median"), "stages.tasks.objective.combine.*'median' is not known"),
        (OBJECTIVE.format("rows_per_block=0"), "rows_per_block.*0 is not positive"),
        (OBJECTIVE.format("rows_per_block=5"), "global_train_batch_size.*24 rows are not whole blocks of .*5"),
        (OBJECTIVE.format("input_noise=1.0"), r"input_noise.*1.0 is not a number in \[0, 1\)"),
        (
            OBJECTIVE.format("combine=projected") + " & " + OBJECTIVE.format("rows_per_block=24"),
            "global_train_batch_size.*24 rows are one block .*, and so one task; .* at least 48 rows, smaller blocks,",
        ),
        ("stages.tasks.batch_size_ramp={initial: 6, increment: 6, duration: 4608tok}", "ramp.initial.*6 rows are not"),
        (
            "stages.tasks.mixture={text: 99.0, topic: 0.1}",
            "stages.tasks.mixture.topic 0.1 of 99.1 is less than one of the 20 blocks of an epoch",
        ),
    ],
)
def test_settings_that_cannot_be_trained_with_are_refused_by_key(recipe, override, says):
    with pytest.raises(FoundryError, match=says):
        open_corpus(load_recipe(recipe, override.split(" & ")))


@pytest.mark.parametrize(
    ("task", "change", "says"),
    [
        ("topic", None, "topic/task.json: no such file, so 'topic' is no task"),
        ("text", Task("answer", (), 1.0), "text/64/train/index.json: its rows have no column 'allowed'"),
        (
            "score",
            Task("regression", (), 1e-3),
            "score/task.json: weight 0.001 of .* is less than one of the 60 blocks",
        ),
    ],
)
def test_tasks_that_are_not_there_are_refused_by_file(recipe, tmp_path, task, change, says):
    shutil.copytree(recipe.parent / "data", tmp_path / "data")
    (tmp_path / "data" / task / "task.json").unlink()
    if change is not None:
        change.write(tmp_path / "data" / task)
    with pytest.raises(DataError, match=says):
        open_corpus(load_recipe(recipe, [f"data.local={tmp_path}/data"]))


def test_a_run_refuses_a_task_whose_weight_has_changed(recipe, tmp_path):
    shutil.copytree(recipe.parent / "data", tmp_path / "data")
    loaded = load_recipe(recipe, [f"data.local={tmp_path}/data"])
    keep_rows(loaded, tmp_path / "rows.json", {64})
    replace(TASKS["topic"], weight=3.0).write(tmp_path / "data/topic")
    with pytest.raises(DataError, match=r"topic/task\.json: not "):
        keep_rows(loaded, tmp_path / "rows.json", {64})


@pytest.mark.long
def test_a_killed_run_resumes_to_the_same_bits_and_two_ranks_see_the_same_rows(recipe, whole, tmp_path):
    assert_killed_and_on_two_ranks_the_same(recipe, whole, KILLED_AT, tmp_path)


@pytest.mark.long
def test_a_rollback_and_longer_rows_are_the_same_compiled_recomputed_and_on_two_replicas_of_two_ranks(recipe, tmp_path):
    runs = recipe.parent / "runs"
    on_ranks(1, tmp_path, train_recipe, recipe, ["run_name=longer", LONGER, ROLLED_BACK])
    on_ranks(4, tmp_path, train_recipe, recipe, ["run_name=sharded", LONGER, ROLLED_BACK, *SHARDED])
    plain, sharded = records(runs / "longer"), records(runs / "sharded")
    assert [line["rollbacks"] for line in plain] == [0] * 4 + [1] * 7
    assert [line["lr"] for line in plain] == [1e-2] * 4 + [5e-3] * 4 + [3e-3] * 3
    assert [line["row_length"] for line in plain] == [64] * 8 + [128] * 3
    assert len(read_lines(runs / "longer/metrics.jsonl")) == 13  # with the two updates that were abandoned
    assert digests(runs / "sharded") == digests(runs / "longer")
    for one, other in zip(plain, sharded, strict=True):
        for column in ("task_loss", "task_grad_norm", "task_weight", "task_units"):
            assert other.get(column, {}) == pytest.approx(one.get(column, {}), rel=1e-3), column


def _rehearse(path: Path, folder: Path) -> None:
    """Rehearse a recipe whose corpus is missing, on one rank."""
    recipe = load_recipe(path, [f"data.local={folder}/missing"])
    small = with_stand_ins(rehearsal(recipe, compile_stages(recipe), 1))
    train(small, compile_stages(small), open_corpus(small))
    export_checkpoint(RunFolder.of(small).path, RunFolder.of(small).export)
    print_transitions(RunFolder.of(small))


@pytest.mark.long
def test_a_rehearsal_without_a_corpus_has_every_kind_of_head(recipe, tmp_path):
    on_ranks(1, tmp_path, _rehearse, recipe, tmp_path)
    lines = records(recipe.parent / "runs/whole-rehearsal")
    assert {task for line in lines for task in line.get("task_loss", ())} == set(TASKS)
    kinds = {Task.read(tmp_path / "missing-rehearsal" / name).kind for name in TASKS}
    assert kinds == set(KINDS)


def test_the_made_examples_of_a_rehearsal_become_rows_of_every_kind_of_task(recipe, tmp_path):
    tasks = rehearsal_tasks(load_recipe(recipe), tmp_path / "files")
    assert {task.kind for task in tasks.values()} == set(KINDS)
    text = SourceConfig("jsonl", str(write_jsonl(tmp_path / "text.jsonl", sentences(0, 40))))
    corpus = CorpusConfig(
        sources={text_source("text"): text},
        tokenizer=TokenizerConfig(train=TrainTokenizer(320)),  # whose tokens are short, so that the rows are full
        row_lengths=[64],
        validation=0.2,
        out=str(tmp_path / "out"),
        executor={"local": {"workers": 1}},
        tasks=tasks,
    )
    prepare(corpus)
    for name, task in tasks.items():
        assert Task.read(tmp_path / "out" / name).kind == task.kind
        assert all(Manifest.read(tmp_path / "out" / name / "64" / split).rows > 1 for split in ("train", "validation"))


def test_heads_that_a_checkpoint_lacks_are_refused_and_those_that_no_stage_draws_are_told(recipe, whole, tmp_path):
    shutil.copytree(recipe.parent / "data", tmp_path / "data")
    shutil.copytree(tmp_path / "data/topic", tmp_path / "data/other")
    (fine,) = check_tasks(load_recipe(recipe))
    assert (fine.mark, fine.said) == (GOOD, "6 tasks, 5 of them with a head: find, names, pick, score, topic")
    _, gone = check_tasks(load_recipe(recipe, ["stages.tasks.mixture={text: 1.0, topic: 1.0}"]))
    assert gone.mark == DOUBTFUL
    assert "has a head for find, names, pick, score, which no stage draws" in gone.said
    more = load_recipe(recipe, [f"data.local={tmp_path}/data", "data.sources=[text, topic, other]"])
    _, new, _ = check_tasks(more)
    assert new.mark == BAD
    assert "has no head for other" in new.said
    with pytest.raises(ConfigurationError, match=r"ba8: has no head for other; .* with init_from"):
        _check_heads(more, RunFolder(whole).newest_checkpoint())


def test_wandb_has_the_numbers_by_task_of_every_update(whole):
    (path,) = whole.glob("wandb/offline-run-*/run-*.wandb")
    rows = [row for row in read_back(path).history if "task/loss/text" in row or "task/loss/topic" in row]
    lines = {line["token"]: line for line in records(whole) if {"text", "topic"} & line.get("task_loss", {}).keys()}
    assert {row[X_AXIS] for row in rows} == set(lines)
    for row in rows:
        for key in ("loss", "right", "units", "grad_norm", "weight", "cosine_estimate"):
            found = {name.rpartition("/")[2]: value for name, value in row.items() if name.startswith(f"task/{key}/")}
            assert found == pytest.approx(lines[row[X_AXIS]][f"task_{key}"]), key


def test_the_report_has_a_line_for_every_task_and_the_summary_its_last_numbers(whole):
    charts = {chart.key: chart for chart in make_charts([Run(whole)])}
    for key in ("task_loss", "task_right", "task_grad_norm", "task_weight", "task_cosine_estimate"):
        assert {series.label for series in charts[f"{key}-0"].series} == set(TASKS), key
    drawn = {series.label: series for series in charts["task_loss-0"].series if not series.markers}
    for task, series in drawn.items():
        assert series.mean.tolist() == [
            line["task_loss"][task] for line in records(whole) if task in line.get("task_loss", ())
        ]
    table = task_table(RunFolder(whole), RunFolder(whole).records(RunFolder(whole).evaluations))
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    said = {line.split()[0]: line.split()[1:] for line in console.file.getvalue().splitlines() if line.strip()}
    of_tasks = read_lines(whole / "eval.jsonl")[1]
    for task in TASKS:
        last = [line for line in records(whole) if task in line.get("task_loss", ())][-1]
        assert said[task][0] == f"{last['task_loss'][task]:.3g}"
        assert said[task][-2:] == [f"{of_tasks[f'loss/{task}']:.3f}", f"{of_tasks[f'examples_right/{task}']:.1%}"]
