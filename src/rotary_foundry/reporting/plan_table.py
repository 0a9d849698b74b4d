"""The plan as a table, and what it costs: what one reads before paying for it. Imports no torch."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from rotary_foundry.recipe import Plan, Recipe
from rotary_foundry.recipe.compilation import compile_stages
from rotary_foundry.recipe.cost import PEAK_FLOPS, Cost, Machine, cost, megatron_flops
from rotary_foundry.recipe.plan import Position, Segment
from rotary_foundry.runs.trained_state import read_source
from rotary_foundry.utils.errors import FoundryError
from rotary_foundry.utils.wording import WIDTH, knob, number, size

CONVENTIONS = {"megatron": megatron_flops}  # of counting operations, beside our own


def print_plan(
    recipe: Recipe,
    plan: Plan,
    machine: Machine | None = None,
    console: Console | None = None,
    flops: str | None = None,
) -> None:
    """Print a plan and its cost.

    Args:
        machine: what to compute hours for.
        flops: a key of CONVENTIONS, to count the operations by that as well.
    """
    console = console or _console()
    costs = cost(recipe, plan)
    console.print(plan_table(plan))
    grid = _grid()
    if plan.abandoned:
        back, tokens = plan.abandoned[0].start_token, _tokens(plan.abandoned)
        grid.add_row(
            "abandoned",
            f"{tokens:,} tokens more: up to {back + tokens:,}, then back to {back:,} (rollback.at); "
            "their operations and checkpoints count below",
        )
    if (source := begins_with(recipe)) is not None:
        grid.add_row("init_from", source)
    for stage, mixture in _mixtures(plan).items():
        grid.add_row("mixture", f"{stage}: {mixture}")
    grid.add_row("optimizer", f"{recipe.optimizer.name}, {_settings(recipe.optimizer.arguments())}")
    for stage, config in recipe.stages.items():
        if config.optimizer:
            changed = recipe.optimizer.changed(config.optimizer).arguments()
            grid.add_row("optimizer", f"{stage}: {_settings({key: changed[key] for key in config.optimizer})}")
    grid.add_row("model", f"{costs.parameters:,} parameters")
    for remark in remarks(recipe, plan):
        grid.add_row("warning", remark)
    of_them = f", {number(costs.abandoned_flops)} of them abandoned" if plan.abandoned else ""
    grid.add_row("training", f"{number(costs.flops)} FLOPs{of_them}; an upper bound, with each row as one document")
    if flops is not None:
        grid.add_row("", f"{number(CONVENTIONS[flops](recipe, plan))} FLOPs as {flops} counts")
    if machine is not None:
        rate = f"{machine.mfu:.1%} of {PEAK_FLOPS[machine.gpu] / 1e12:,.0f} TFLOP/s (bf16, dense)"
        hours = f"{machine.hours(costs.flops):,.1f} hours"
        grid.add_row("time", f"{hours} on {machine.gpus} × {machine.gpu}, each at {rate}")
    grid.add_row("checkpoints", checkpoints_line(costs))
    console.print(grid)


def plan_table(plan: Plan) -> Table:
    """A row a segment, in the order in which they are trained; the abandoned ones where they are abandoned."""
    table = Table(title=plan.name, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_footer=True)
    table.add_column("stage", "kept" if plan.abandoned else "total", no_wrap=True)
    for heading, total in (
        ("updates", f"{plan.total_updates:,}"),
        ("rows", ""),
        ("length", ""),
        ("tokens", f"{plan.total_tokens:,}"),
    ):
        table.add_column(heading, total, justify="right", no_wrap=True)
    table.add_column("lr")  # wraps: a schedule of many points is long
    knobs = changing_knobs(plan)
    for name in knobs:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("weight decay", no_wrap=True)
    back = plan.abandoned[0].start_token if plan.abandoned else None
    kept_before = [segment for segment in plan.segments if back is not None and segment.end_token <= back]
    trained = chain(
        ((segment, False) for segment in kept_before),
        ((segment, True) for segment in plan.abandoned),
        ((segment, False) for segment in plan.segments[len(kept_before) :]),
    )
    weight_decay = None
    for segment, abandoned in trained:
        changed = segment.weight_decay != weight_decay
        weight_decay = segment.weight_decay
        table.add_row(
            f"{segment.stage}\nabandoned" if abandoned else segment.stage,
            f"{segment.updates:,}",
            f"{segment.rows:,}",
            f"{segment.row_length:,}",
            f"{_tokens([segment]):,}",
            rates(segment, segment),
            *(knob_range(name, segment, segment) for name in knobs),
            number(weight_decay) if changed else "",
            style="dim" if abandoned else None,
        )
    return table


def changing_knobs(plan: Plan) -> list[str]:
    """The knobs whose value changes in a plan."""
    values: dict[str, set[float]] = {}
    for segment in plan.segments:
        for name, schedule in segment.knobs.items():
            values.setdefault(name, set()).update((schedule.start, schedule.end))
    return [name for name, found in values.items() if len(found) > 1]


def knob_range(name: str, first: Segment, last: Segment) -> str:
    """A knob's value from one segment to another: the first and the last, if they differ; nothing if neither has it."""
    there = [segment for segment in (first, last) if name in segment.knobs]
    tokens = (first.start_token, last.end_token)
    ends = [segment.knobs[name].at(token) for segment, token in zip(there, tokens, strict=False)]
    return " → ".join(dict.fromkeys(knob(value) for value in ends))


def _settings(arguments: dict[str, Any]) -> str:
    return "; ".join(f"{key} {_setting(value)}" for key, value in arguments.items())


def _setting(value: Any) -> str:
    if value is None:
        return "none"
    return ", ".join(number(each) for each in value) if isinstance(value, list | tuple) else number(value)


def print_position(position: Position, console: Console | None = None) -> None:
    """Print what a token decides."""
    grid = _grid()
    for key, value in position.to_json().items():
        if key == "lr" or key in position.optimizer:
            as_text = _setting(value)
        else:
            as_text = f"{value:,}" if isinstance(value, int) else knob(value) if isinstance(value, float) else value
        grid.add_row(key, as_text)
    (console or _console()).print(grid)


def _console() -> Console:
    return Console(highlight=False, width=max(WIDTH, Console().width))


def _grid() -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column()
    grid.add_column(overflow="fold")  # else a long path would lose its end
    return grid


def remarks(recipe: Recipe, plan: Plan) -> Iterator[str]:
    """Warn of values of the model that are probably wrong for a stage's rows, as they are at the stage's end."""
    for segment in {segment.stage: segment for segment in plan.segments}.values():
        knobs = segment.knobs_at(segment.end_token)
        yield from (f"{segment.stage}: {remark}" for remark in recipe.model.shape.remarks(knobs, segment.row_length))


def checkpoints_line(costs: Cost) -> str:
    """Say how many checkpoints there will be, and how large."""
    one, written, kept = costs.checkpoint_bytes, costs.checkpoints_written, costs.checkpoints_kept
    stay = "all kept" if kept == written else f"{kept:,} kept, {size(kept * one)}"
    return f"{written:,} of {size(one)} (weights and two moments, float32), {size(written * one)} in all; {stay}"


def _mixtures(plan: Plan) -> dict[str, str]:
    """By stage, since all segments of one share it."""
    shares = {segment.stage: segment.mixture or {} for segment in plan.segments}
    return {
        stage: ", ".join(f"{source} {share:g}" for source, share in mixture.items()) or "every row once an epoch"
        for stage, mixture in shares.items()
    }


def _tokens(segments: list[Segment] | tuple[Segment, ...]) -> int:
    return sum(segment.updates * segment.tokens_per_update for segment in segments)


def rates(first: Segment, last: Segment) -> str:
    """The learning rates from one segment to another: the first, those at turns of the schedule between, the last."""
    start, end, learning_rate = first.start_token, last.end_token, first.learning_rate
    between = [learning_rate.at(token) for token in learning_rate.turns if start < token < end]
    values = [number(rate) for rate in (learning_rate.at(start), *between, last.learning_rate.at(end))]
    return " → ".join(value for value, before in zip(values, [None, *values], strict=False) if value != before)


def begins_with(recipe: Recipe) -> str | None:
    """What is to be known of `init_from` before a run goes on from it; None if there is none here.

    Theta and length stand here because nothing else would tell that a run goes on with others than its source had.
    """
    if recipe.init_from is None or not Path(recipe.init_from).exists():
        return None
    try:
        source = read_source(recipe.init_from)
    except FoundryError as error:
        return str(error)
    trained = ", ".join(f"{name} {knob(value)}" for name, value in source.knobs.items())
    said = f"{recipe.init_from}, trained last at {trained}"
    if source.longest_row is not None:
        said += f", on rows of up to {source.longest_row:,} tokens"
    begins = compile_stages(recipe).at(0).knobs
    others = [f"{name} {knob(value)}" for name, value in begins.items() if source.knobs.get(name, value) != value]
    if others:
        said += f"; this run begins at {', '.join(others)}"
    if not (source.tokenizer / "tokenizer.json").is_file():
        said += f"; without a tokenizer in {source.tokenizer}, so that of the shards is not compared with it"
    return said
