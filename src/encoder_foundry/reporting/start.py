"""What a run says when it starts: the recipe, what it runs on, and where things go, in at most 25 lines.

One looks at it to see a mistake before hours have gone into it: the wrong shards, one process in place of eight, a
slow attention, a disk too small. The plan segment by segment is `encoder-foundry plan`'s. A run that goes on says less.
"""

import json
import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from encoder_foundry.data.rows import Manifest
from encoder_foundry.recipe import Plan, Recipe, compile_plan
from encoder_foundry.recipe.cost import cost, parameters
from encoder_foundry.recipe.schema import StageConfig
from encoder_foundry.reporting.plan import begins_with, checkpoints_line, rates
from encoder_foundry.run_folder import CompleteCheckpoint, RunFolder

WIDTH = 100  # columns where there is no terminal
MOST_LINES = 25
MOST_SOURCES = 3  # named in a line


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
        recipe: with all overrides.
        plan: in force.
        folder: of the run, with its environment.json.
        attention: the backend that computes it here.
        checkpoint: from which it goes on; None: from the beginning.
        console: other than stdout.
    """
    console = console or _console()
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    if checkpoint is not None:
        position = plan.at(checkpoint.token)
        left = plan.total_tokens - checkpoint.token
        done = f"update {position.update:,} of {plan.total_updates:,}, in {position.stage}; {left:,} tokens are left"
        grid.add_row("position", done)
    grid.add_row("model", _model(recipe, attention))
    if checkpoint is None and (source := begins_with(recipe)) is not None:
        grid.add_row("init_from", source)
    grid.add_row("devices", _devices(folder))
    grid.add_row("sharding", _sharding(recipe, folder))
    if checkpoint is None:
        grid.add_row("data", _data(recipe))
        mixtures = [f"{name}: {_mixture(stage)}" for name, stage in recipe.stages.items() if stage.mixture]
        if mixtures:
            grid.add_row("mixture", _some(mixtures, "stages", "; "))
        grid.add_row("checkpoints", f"{checkpoints_line(cost(recipe, compile_plan(recipe)))}; {_place(recipe, folder)}")
        if recipe.loggers:
            grid.add_row("loggers", ", ".join(recipe.loggers))
    grid.add_row("records", f"{folder.path}: {folder.metrics.name}, {folder.evaluations.name}, logs/")
    grid.add_row("page", f"encoder-foundry report {folder.path} --watch")
    if checkpoint is None:
        console.print(_stage_table(recipe, plan, most=MOST_LINES - len(console.render_lines(grid)) - 4))
    console.print(grid)


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
        padding=(0, 2, 0, 0),
    )
    for heading in ("stage", "tokens", "rows", "length", "lr", "theta"):
        right = heading in ("tokens", "rows", "length", "theta")
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    for stage in list(recipe.stages)[:most]:
        segments = [segment for segment in plan.segments if segment.stage == stage]
        first, last = segments[0], segments[-1]
        table.add_row(
            stage,
            f"{last.end_token - first.start_token:,}",
            f"{first.rows:,}" if first.rows == last.rows else f"{first.rows:,}–{last.rows:,}",
            f"{first.row_length:,}",
            rates(first, last),
            f"{first.rope_theta_global:,.0f}",
        )
    if len(recipe.stages) > most:
        table.add_row(f"and {len(recipe.stages) - most} more")
    return table


def _model(recipe: Recipe, attention: str) -> str:
    said = [
        f"{parameters(recipe.model):,} parameters",
        recipe.precision,
        f"attention by {attention}",
        "" if recipe.compile_config is None else "compiled",
    ]
    return ", ".join(filter(None, said))


def _devices(folder: RunFolder) -> str:
    found = json.loads(folder.environment.read_text(encoding="utf-8"))
    kinds = dict.fromkeys(found["devices"])
    counts = [(found["devices"].count(kind), kind) for kind in kinds]
    named = ", ".join(f"{count} × {kind}" if count > 1 else kind for count, kind in counts)
    ranks = "1 rank" if found["ranks"] == 1 else f"{found['ranks']} ranks"
    nodes = "1 node" if found["nodes"] == 1 else f"{found['nodes']} nodes, the first"
    return f"{ranks} on {nodes}: {named}"


def _sharding(recipe: Recipe, folder: RunFolder) -> str:
    ranks = json.loads(folder.environment.read_text(encoding="utf-8"))["ranks"]
    replicas, shards = recipe.fsdp_config.degrees(ranks)
    said = f"FSDP2 over {shards}" if replicas == 1 else f"HSDP: {replicas} copies, each over {shards}"
    return said + (", activation checkpointing" if recipe.fsdp_config.activation_checkpointing else "")


def _data(recipe: Recipe) -> str:
    """Where it is, and for each row length the rows of every source."""
    data = recipe.data
    lines = [data.local if data.remote is None else f"{data.remote}, cached in {data.local}"]
    for length in dict.fromkeys(stage.row_length for stage in recipe.stages.values()):
        folders = {source: Path(data.local, source, str(length), "train") for source in data.sources}
        rows = [f"{source} {Manifest.read(folder).rows:,}" for source, folder in folders.items()]
        lines.append(f"rows of {length:,}: {_some(rows, 'sources')}")
    return "\n".join(lines)


def _mixture(stage: StageConfig) -> str:
    return _some([f"{source} {share:g}" for source, share in stage.mixture.items()], "sources")


def _place(recipe: Recipe, folder: RunFolder) -> str:
    place = f"in {folder.checkpoints}"
    return place if recipe.save_folder is None else f"{place}, and {recipe.save_folder.rstrip('/')}/{recipe.run_name}"


def _some(names: list[str], kind: str, between: str = ", ") -> str:
    more = len(names) - MOST_SOURCES
    return between.join(names[:MOST_SOURCES]) + (f" and {more} {kind} more" if more > 0 else "")
