"""Print the recipe, the hardware and the folders when a run starts, in at most 25 lines.

It shows mistakes before hours are spent on them: the wrong shards, one process instead of eight, slow attention, a disk
that is too small. `rotary-foundry plan` prints the plan by segment. A resumed run prints less.

Long paths and narrow terminals need more lines. The stages have priority; then the longest of the other values are cut,
and end with an ellipsis.
"""

import json
import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rotary_foundry.data.rows import Manifest
from rotary_foundry.recipe import Plan, Recipe
from rotary_foundry.recipe.compilation import with_set_rollback
from rotary_foundry.recipe.cost import cost
from rotary_foundry.recipe.schema import StageConfig
from rotary_foundry.reporting.plan_remarks import begins_with, remarks
from rotary_foundry.reporting.plan_table import (
    changing_knobs,
    checkpoints_line,
    knob_range,
    rates,
)
from rotary_foundry.runs.run_folder import CompleteCheckpoint, RunFolder
from rotary_foundry.utils.processor import has_bf16_instructions
from rotary_foundry.utils.wording import WIDTH

GAP = 2  # columns between a key and its value
MOST_LINES = 25
MOST_NAMED = 3  # sources or stages per line, and row lengths
FEWEST_STAGES = 6  # shown even if other lines must be cut


def print_start(
    recipe: Recipe,
    plan: Plan,
    folder: RunFolder,
    attention: str,
    checkpoint: CompleteCheckpoint | None,
    console: Console | None = None,
) -> None:
    """Print how a run starts.

    Args:
        recipe: the recipe with all overrides.
        plan: the plan in force.
        folder: the run's folder, with its environment.json.
        attention: the attention backend on this machine.
        checkpoint: the one to resume from; None: the run starts from the beginning.
        console: where to print; None: stdout.
    """
    console = console or _console()
    rows: list[tuple[str, str]] = []
    if checkpoint is not None:
        position = plan.at(checkpoint.token)
        left = plan.total_tokens - checkpoint.token
        done = f"update {position.update:,} of {plan.total_updates:,}, in {position.stage}; {left:,} tokens are left"
        rows.append(("position", done))
    rows.append(("model", _model(recipe, attention, folder)))
    if checkpoint is None and (source := begins_with(recipe)) is not None:
        rows.append(("init_from", source))
    rows += [("devices", _devices(recipe, folder)), ("sharding", _sharding(recipe, folder))]
    if checkpoint is None:
        rows += zip(["data", *[""] * MOST_NAMED], _data(recipe), strict=False)
        mixtures = [f"{name}: {_mixture(stage)}" for name, stage in recipe.stages.items() if stage.mixture]
        if mixtures:
            rows.append(("mixture", _some(mixtures, "stages", "; ")))
        costs = checkpoints_line(cost(recipe, with_set_rollback(recipe, plan)))
        rows.append(("checkpoints", f"{costs}; {_place(recipe, folder)}"))
        rows += [("warning", remark) for remark in remarks(recipe, plan)]
        if recipe.loggers:
            rows.append(("loggers", ", ".join(recipe.loggers)))
    records = f"{folder.metrics.name}, {folder.evaluations.name}, logs/"
    rows.append(("records", f"{records} and {folder.checkpoints.name}/ in the run's folder"))
    rows.append(("page", f"rotary-foundry report {folder.path}"))
    room = MOST_LINES
    if checkpoint is None:
        lines = sum(len(value) for _, value in _wrapped(rows, console))
        head = len(console.render_lines(_stage_table(recipe, plan, most=0)))  # with a line for those not shown
        table = _stage_table(recipe, plan, most=max(FEWEST_STAGES, MOST_LINES - head - lines))
        room -= len(console.render_lines(table))
        console.print(table)
    console.print(_grid(_wrapped(rows, console, room)))


def _wrapped(rows: list[tuple[str, str]], console: Console, most: int | None = None) -> list[tuple[str, list[Text]]]:
    """Return keys with the lines of their values; `most` limits all lines together, but each value keeps at least one.

    The last row, which has the run's folder, is shortened last.
    """
    width = console.width - max(len(key) for key, _ in rows) - GAP
    wrapped = [(key, list(Text(value).wrap(console, width, overflow="fold"))) for key, value in rows]
    while most is not None and sum(len(lines) for _, lines in wrapped) > max(most, len(wrapped)):
        longest = max((lines for _, lines in wrapped[:-1]), key=len)
        if len(longest) == 1:
            longest = wrapped[-1][1]
        longest.pop()
        longest[-1].truncate(width - 1)
        longest[-1].append("…")
    return wrapped


def _grid(rows: list[tuple[str, list[Text]]]) -> Table:
    grid = Table.grid(padding=(0, GAP, 0, 0))
    for _ in range(2):
        grid.add_column(no_wrap=True)
    for key, lines in rows:
        grid.add_row(key, Text("\n").join(lines))
    return grid


def _console() -> Console:
    on_terminal = sys.stdout.isatty()
    return Console(
        file=sys.stdout, force_terminal=on_terminal, width=None if on_terminal else WIDTH, highlight=False, markup=False
    )


def _stage_table(recipe: Recipe, plan: Plan, most: int) -> Table:
    table = Table(
        title=f"{plan.name}: {plan.total_tokens:,} tokens in {plan.total_updates:,} updates",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    knobs = changing_knobs(plan)
    for heading in ("stage", "tokens", "rows", "length", "lr", *knobs):
        right = heading not in ("stage", "lr")
        table.add_column(heading, justify="right" if right else "left", no_wrap=heading != "lr")
    for stage in list(recipe.stages)[:most]:
        segments = [segment for segment in plan.segments if segment.stage == stage]
        first, last = segments[0], segments[-1]
        table.add_row(
            stage,
            f"{last.end_token - first.start_token:,}",
            f"{first.rows:,}" if first.rows == last.rows else f"{first.rows:,}–{last.rows:,}",
            f"{first.row_length:,}",
            rates(first, last),
            *(knob_range(knob, first, last) for knob in knobs),
        )
    if len(recipe.stages) > most:
        table.add_row(f"and {len(recipe.stages) - most} more")
    return table


def _model(recipe: Recipe, attention: str, folder: RunFolder) -> str:
    device = "cuda" if "cuda" in json.loads(folder.environment.read_text(encoding="utf-8")) else "cpu"
    said = [
        f"{recipe.model.shape.parameters:,} parameters",
        recipe.precision,
        f"attention by {attention}",
        "compiled" if recipe.is_compiled_on(device) else "",
    ]
    return ", ".join(filter(None, said))


def _devices(recipe: Recipe, folder: RunFolder) -> str:
    found = json.loads(folder.environment.read_text(encoding="utf-8"))
    kinds = dict.fromkeys(found["devices"])
    counts = [(found["devices"].count(kind), kind) for kind in kinds]
    named = ", ".join(f"{count} × {kind}" if count > 1 else kind for count, kind in counts)
    ranks = "1 rank" if found["ranks"] == 1 else f"{found['ranks']} ranks"
    nodes = "1 node" if found["nodes"] == 1 else f"{found['nodes']} nodes, the first"
    slow = recipe.precision == "amp_bf16" and "cuda" not in found and not has_bf16_instructions()
    advice = ", which has no bf16 instructions: precision=fp32 is far faster here" if slow else ""
    return f"{ranks} on {nodes}: {named}{advice}"


def _sharding(recipe: Recipe, folder: RunFolder) -> str:
    found = json.loads(folder.environment.read_text(encoding="utf-8"))
    replicas, shards = recipe.fsdp_config.degrees(found["ranks"], found["nodes"])
    said = f"FSDP2 over {shards}" if replicas == 1 else f"HSDP: {replicas} copies, each over {shards}"
    return said + (", activation checkpointing" if recipe.fsdp_config.activation_checkpointing else "")


def _data(recipe: Recipe) -> list[str]:
    """Return the place of the data, and for each row length the rows of every source."""
    data = recipe.data
    lines = [data.local if data.remote is None else f"{data.remote}, cached in {data.local}"]
    lengths = list(dict.fromkeys(stage.row_length for stage in recipe.stages.values()))
    for length in lengths[:MOST_NAMED]:
        folders = {source: Path(data.local, source, str(length), "train") for source in data.sources}
        rows = [f"{source} {Manifest.read(folder).rows:,}" for source, folder in folders.items()]
        lines.append(f"rows of {length:,}: {_some(rows, 'sources')}")
    if len(lengths) > MOST_NAMED:
        lines[-1] += f"; and {len(lengths) - MOST_NAMED} lengths more"
    return lines


def _mixture(stage: StageConfig) -> str:
    return _some([f"{source} {share:g}" for source, share in stage.mixture.items()], "sources")


def _place(recipe: Recipe, folder: RunFolder) -> str:
    place = f"in {folder.checkpoints.name}/"
    return place if recipe.save_folder is None else f"{place}, and {recipe.save_folder.rstrip('/')}/{recipe.run_name}"


def _some(names: list[str], kind: str, between: str = ", ") -> str:
    more = len(names) - MOST_NAMED
    return between.join(names[:MOST_NAMED]) + (f" and {more} {kind} more" if more > 0 else "")
