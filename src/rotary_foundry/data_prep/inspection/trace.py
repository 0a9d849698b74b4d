"""`data trace`: find the documents that an update of a run was trained on.

The rows are not recorded; the plan, the canonical order and the index files give them. The update's line in
metrics.jsonl has a digest of all rows with their masks. The rows are masked again here and must give the same digest.
If they do not, the shards have changed since the run, and the trace is refused.

Update N is the line of metrics.jsonl whose `batch` is N, counted from 1. After a rollback, some numbers were trained
twice. The trace shows the updates that were kept, unless the caller asks for the run before a given rollback.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rotary_foundry.data.batches import collate, update_digest
from rotary_foundry.data.block_order import order_of
from rotary_foundry.data.corpus import open_corpus, open_objective
from rotary_foundry.data.order import Draw
from rotary_foundry.data.row_preparation import TrainingPrepared
from rotary_foundry.data_prep.inspection.shard_folder import ShardFolder
from rotary_foundry.data_prep.inspection.show import ids_of
from rotary_foundry.data_prep.inspection.source_folders import local_folder, printable
from rotary_foundry.recipe import Recipe
from rotary_foundry.recipe.plan import Plan, Rollback
from rotary_foundry.runs.record_files import each_line
from rotary_foundry.runs.run_folder import RunFolder, abandoned_by
from rotary_foundry.runs.trained_state import plan_of, recipe_of, with_data
from rotary_foundry.utils.errors import ConfigurationError, DataError


@dataclass(frozen=True)
class TracedRow:
    """A row that an update was trained on."""

    source: str
    row: int  # number in the source's folder of shards, as `data show` takes it
    shard: str
    row_in_shard: int
    documents: list[str | None]  # the ids of its documents; None if the corpus does not have them


@dataclass(frozen=True)
class TracedUpdate:
    """An update, and its rows in the order of the draw."""

    update: int
    stage: str
    row_length: int
    token: int  # the token at which it starts
    rows: list[TracedRow]


def trace(run: str | Path, update: int, before_rollback: int | None = None, data: str | None = None) -> TracedUpdate:
    """Find the rows that an update was trained on.

    Args:
        run: a run folder.
        update: number of the update, from 1, as in metrics.jsonl.
        before_rollback: n to trace the run before its n-th rollback, counted from 1.
        data: the folder with the run's data; None: the folder that its recipe names.

    Raises:
        ConfigurationError: `run` is not a run folder, or it has no such update or rollback.
        DataError: the corpus is missing, damaged, or not the one that the run was trained on.
    """
    local_folder(run)
    folder = RunFolder(Path(run))
    if not folder.recipe.is_file():
        raise ConfigurationError(
            f"{run}: not a run folder, because it has no {folder.recipe.name}; give the folder of a run"
        )
    recipe = with_data(folder, recipe_of(folder), data)
    rollbacks = folder.rollbacks()
    if before_rollback is not None:
        if not 1 <= before_rollback <= len(rollbacks):
            raise ConfigurationError(f"{run}: no rollback {before_rollback}; the run has had {len(rollbacks)}")
        rollbacks = rollbacks[: before_rollback - 1]
    plan = plan_of(folder, recipe, rollbacks)
    recorded = _recorded_digest(folder, plan, rollbacks, update)
    token = _start(plan, update)
    traced, digest = rows_of(recipe, plan, token)
    if digest != recorded:
        raise DataError(
            f"{recipe.data.local}: not the shards that update {update} was trained on: its rows and masks now have the "
            f"digest {digest}, but {folder.metrics} recorded {recorded}; restore the shards of the run"
        )
    segment = plan.segment_at(token)
    return TracedUpdate(update, segment.stage, segment.row_length, token, traced)


def _recorded_digest(folder: RunFolder, plan: Plan, rollbacks: Sequence[Rollback], update: int) -> str:
    """Return the digest of an update's rows from metrics.jsonl."""
    if not 1 <= update <= plan.total_updates:
        raise ConfigurationError(f"{folder.path}: no update {update}; its plan has updates 1 to {plan.total_updates}")
    lines = {
        line["batch"]: line["rows_digest"]
        for line in each_line(folder.metrics, ["rows_digest"])
        if line.get("rollbacks", 0) <= len(rollbacks)
        and abandoned_by(line["token"], line.get("rollbacks", 0), rollbacks) is None
    }
    if update not in lines:
        raise ConfigurationError(
            f"{folder.path}: has not reached update {update}; its last one is {max(lines, default=0)}"
        )
    return lines[update]


def _start(plan: Plan, update: int) -> int:
    """Return the token at which an update starts."""
    segment = next(segment for segment in plan.segments if update <= segment.start_update + segment.updates)
    return segment.start_token + (update - 1 - segment.start_update) * segment.tokens_per_update


def rows_of(recipe: Recipe, plan: Plan, token: int) -> tuple[list[TracedRow], str]:
    """Return the rows of the update that starts at a token, and their digest."""
    segment, start_row = plan.segment_at(token), plan.at(token).rows_drawn_in_stage
    data = recipe.data
    tokenizer = open_corpus(recipe, lock=False)  # the run may still be running
    objective = open_objective(recipe, segment.stage)
    prepare = TrainingPrepared(objective, tokenizer, recipe.seed, segment)
    remote = data.remote.rstrip("/") if data.remote else None
    folders = []
    for source in data.sources:
        place = f"{source}/{segment.row_length}/train"
        folders.append(ShardFolder(Path(data.local, place), f"{remote}/{place}" if remote else None))
    shard_rows = {source: folder.shard_rows for source, folder in zip(data.sources, folders, strict=True)}
    draw = Draw(
        seed=recipe.seed,
        stage_index=segment.stage_index,
        mixture=segment.mixture or objective.weights,
        start_row=start_row,
        updates=1,
        global_batch_size=segment.rows,
        rows_per_block=objective.block_size,
    )
    order = order_of(shard_rows, data.shuffle_block_size, draw)
    drawn = order.stretch(start_row, segment.rows)
    first_rows = np.cumsum([0, *(folder.size for folder in folders)])
    sources = np.searchsorted(first_rows, drawn, side="right") - 1
    traced, digests = {}, []
    for place in np.argsort(drawn, kind="stable").tolist():  # in storage order, so that each shard is read once
        index, source = int(drawn[place]), int(sources[place])
        folder = folders[source]
        row = index - int(first_rows[source])
        shard, sample = folder.shard_of(row), folder.row(row)
        sample |= {"row": index, "position": start_row + place, "source": data.sources[source]}
        by_task = objective.block_size is not None
        batch = collate([sample], prepare, segment.row_length, tokenizer.vocab_size, by_task=by_task)
        digests += batch["row_digests"]
        documents = ids_of(folder, shard, sample)
        traced[place] = TracedRow(data.sources[source], row, shard.name, row - shard.first_row, documents)
    return [traced[place] for place in range(len(drawn))], update_digest(digests)


def print_trace(traced: TracedUpdate, as_json: bool = False, console: Console | None = None) -> None:
    """Print a traced update."""
    if as_json:
        print(json.dumps(asdict(traced), indent=2))
        return
    console = console or Console(highlight=False)
    console.print(
        f"update {traced.update}: stage {traced.stage}, rows of {traced.row_length:,}, starts at token "
        f"{traced.token:,}; its {len(traced.rows):,} rows and their masks agree with metrics.jsonl",
        markup=False,
        soft_wrap=True,
    )
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("source")
    table.add_column("row", justify="right")
    table.add_column("shard", no_wrap=True)
    table.add_column("row in it", justify="right")
    table.add_column("documents", overflow="fold")
    for row in traced.rows:
        ids = [printable(id_) for id_ in row.documents if id_ is not None]
        documents = ", ".join(dict.fromkeys(ids)) if ids else f"{len(row.documents)}, ids unknown"
        table.add_row(row.source, f"{row.row}", row.shard, f"{row.row_in_shard}", Text(documents))
    console.print(table)
