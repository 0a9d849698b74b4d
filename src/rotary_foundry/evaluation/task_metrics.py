"""The suite `tasks`: every task of a multi-task run, on all of its held-out rows.

The metrics are those that training records for a task, by the same code (`objectives/multi_task.py`), on the same rows
and, in masked-LM tasks, with the same masks. They are computed in float32. They count in the loss's units: examples (a
text or a pair, a multiple-choice question, a window of an answer), or tokens in masked LM. Entities also have the F1
over all spans.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from rotary_foundry.data.batches import collate
from rotary_foundry.data.corpus import tokenizer_facts
from rotary_foundry.data.row_preparation import HeldOutPrepared
from rotary_foundry.data.same_tokenizer import check_same_tokenizer
from rotary_foundry.data_prep.inspection.shard_folder import ShardFolder
from rotary_foundry.data_prep.inspection.source_folders import INDEX
from rotary_foundry.data_prep.statistics import FILE, Statistics
from rotary_foundry.evaluation import bootstrap
from rotary_foundry.evaluation.results import Headline, Result, Row, digest
from rotary_foundry.evaluation.suites import ResampledConfig
from rotary_foundry.interop import load_model
from rotary_foundry.interop.trained_tasks import TrainedTask, head_weights, trained_tasks
from rotary_foundry.models.config_json import CONFIG
from rotary_foundry.models.task_heads import attach_heads, head_prefix
from rotary_foundry.runs.trained_state import TrainedState, find_trained_state, with_data
from rotary_foundry.utils.errors import ConfigurationError, DataError

SPLIT = "validation"
LOSS, RIGHT = "loss", "examples_right"  # names of the objective's metrics
SPAN_F1 = "span_f1"  # of entities; an entity is found if its kind and both ends are right
WITHIN = {RIGHT: (0.0, 1.0), SPAN_F1: (0.0, 1.0)}  # a loss has no bounds


@dataclass
class Config(ResampledConfig):
    """The keys of `yamls/eval/tasks.yaml`."""

    data: str | None = None  # the folder with the run's data; null: the recipe's folder


@dataclass(frozen=True)
class _Opened:
    """A checkpoint, its tasks, and the held-out rows of all sources at the row length of each of their stages."""

    state: TrainedState
    local: Path
    tasks: dict[str, TrainedTask]
    rows: dict[int, dict[str, ShardFolder]]  # by row length, then by source in the recipe's order

    def samples(self, name: str) -> Iterator[dict]:
        """Yield the rows of a task, each with its number and source as in the evaluations of training."""
        folders = self.rows[self.tasks[name].row_length]
        before = list(folders).index(name)
        number = sum(folder.size for folder in list(folders.values())[:before])
        for shard in folders[name].shards:
            for sample in folders[name].rows(shard):
                yield sample | {"row": number, "source": name}
                number += 1


def check(path: Path, config: Config) -> None:
    """Check that a model comes from a multi-task run whose tasks are still in the data.

    Raises:
        FoundryError: names the file and the key of what is missing.
    """
    _open(path, config)


def run(path: Path, config: Config) -> Result:
    """Measure every task.

    Raises:
        FoundryError: as for `check`, or a shard is damaged.
    """
    opened = _open(path, config)
    state, facts = opened.state, tokenizer_facts(opened.local / "tokenizer")
    network = _network(opened)
    rows, headlines, asked = [], [], []
    for name, trained in opened.tasks.items():
        prepare = HeldOutPrepared(trained.objective, facts, state.recipe.seed)
        sums: dict[str, dict[str, tuple[float, float]]] = {}
        for sample in opened.samples(name):
            batch = collate([sample], prepare, trained.row_length, facts.vocab_size, by_task=True)
            asked.append(batch["row_digests"][0].encode())
            for metric, value, units in _measured(network, trained, batch):
                sums.setdefault(metric, {})[f"{name}:{sample['row']}"] = value, units
        measures = {
            metric: bootstrap.ratio(of_rows, config.resamples, config.seed, WITHIN.get(metric))
            for metric, of_rows in sums.items()
            if any(units for _, units in of_rows.values())  # entities may be neither there nor found
        }
        counted = int(sum(units for _, units in sums[LOSS].values()))
        labels = {"task": name, "kind": trained.task.kind, "rows": len(sums[LOSS]), "examples": counted}
        shown = {RIGHT: "right"}  # other metrics are shown by their own names
        rows.append(Row(labels, {shown.get(metric, metric): measure for metric, measure in measures.items()}))
        headlines += [
            Headline(f"{name}: {shown.get(metric, metric)}", measure, metric == LOSS, sums[metric], WITHIN.get(metric))
            for metric, measure in measures.items()
        ]
    return Result(
        suite=config.suite,
        title=f"tasks on their held-out rows, after {state.checkpoint.token:,} tokens",
        model={"token": state.checkpoint.token, "batch": state.checkpoint.batch},
        config={},
        data=_data(opened),
        rows=rows,
        headlines=headlines,
        notes=[
            "loss: nats per example, or per token of masked_lm; for a regression the squared error",
            "right: share of the examples (for a regression, those off by less than 0.5); intervals are over rows",
        ],
        asked=digest(asked),
    )


@torch.inference_mode()
def _measured(network: nn.Module, trained: TrainedTask, batch: dict) -> Iterator[tuple[str, float, int]]:
    """Yield for each metric its name, its sum over the row, and its divisor for the mean."""
    device = next(network.parameters()).device
    batch = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
    sums = trained.objective.loss(network, batch)
    for metric in trained.objective.metrics:
        yield metric.name, float(getattr(sums, metric.field)), sums.tokens
    if trained.task.kind == "entities":
        hits, found, there = network.heads.spans(network, batch)
        yield SPAN_F1, 2 * hits, found + there


def _open(path: Path, config: Config) -> _Opened:
    if (path / CONFIG).is_file():
        raise ConfigurationError(
            f"{path}: a model directory, which has at most one task; give a multi-task run or a checkpoint of it"
        )
    state = find_trained_state(path)
    tasks = trained_tasks(state, config.data)
    recipe = with_data(state.run, state.recipe, config.data)
    local = Path(recipe.data.local)
    check_same_tokenizer(local / "tokenizer", state.run.tokenizer, "give the run's own data, data=FOLDER")
    lengths = dict.fromkeys(trained.row_length for trained in tasks.values())
    rows = {
        length: {source: _held_out(local / source / str(length) / SPLIT) for source in recipe.data.sources}
        for length in lengths
    }
    return _Opened(state, local, tasks, rows)


def _held_out(folder: Path) -> ShardFolder:
    """Open the held-out rows of a source.

    Raises:
        DataError: it has none.
    """
    found = ShardFolder(folder) if (folder / INDEX).is_file() else None
    if found is None or not found.size:
        task = folder.parents[1].name
        raise DataError(
            f"{folder}: no held-out rows of '{task}' there; copy them from the run's data, or prepare it again with "
            f"`tasks.{task}.data.validation`"
        )
    return found


def _network(opened: _Opened) -> nn.Module:
    network = load_model(opened.state.checkpoint.folder)
    tasks = {name: trained.task for name, trained in opened.tasks.items()}
    attach_heads(network, tasks)
    heads = {
        head_prefix(name) + key: value
        for name, task in tasks.items()
        if task.kind != "masked_lm"
        for key, value in head_weights(opened.state, name, task).items()
    }
    network.load_state_dict(heads, strict=False)
    return network.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _data(opened: _Opened) -> dict:
    """Describe the data of a result, as other suites do."""
    corpus = Statistics.read(opened.local).corpus if (opened.local / FILE).is_file() else None
    rows = {name: opened.rows[trained.row_length][name].size for name, trained in opened.tasks.items()}
    return {"folder": str(opened.local), "corpus": corpus, "split": SPLIT, "rows": rows}
