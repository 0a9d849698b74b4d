"""Print the plan as a table with its cost, to be read before paying for it. Imports no torch."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from rotary_foundry.recipe import Plan, Recipe
from rotary_foundry.recipe.cost import (
    BESIDES,
    GPU_MEMORY,
    PEAK_FLOPS,
    Cost,
    Machine,
    Memory,
    TokenCost,
    cost,
    megatron_flops,
    memory,
    slower,
    token_cost,
    token_costs,
)
from rotary_foundry.recipe.mixtures import MOST_SOURCES, grouped, long_share
from rotary_foundry.recipe.plan import Position, Segment
from rotary_foundry.reporting.drawn_data import DrawnData, drawn_data, not_counted
from rotary_foundry.reporting.plan_remarks import begins_with, remarks, source_of
from rotary_foundry.runs.trained_state import Source
from rotary_foundry.utils.wording import WIDTH, knob, number, size

CONVENTIONS = {"megatron": megatron_flops}  # ways to count operations in addition to our own


def print_plan(
    recipe: Recipe,
    plan: Plan,
    machine: Machine | None = None,
    console: Console | None = None,
    flops: str | None = None,
) -> None:
    """Print a plan and its cost.

    Args:
        machine: the machine for which hours are computed.
        flops: a key of CONVENTIONS, to count the operations in that way too.
    """
    console = console or _console()
    costs, data = cost(recipe, plan), drawn_data(recipe, plan)
    console.print(plan_table(plan))
    if any(stage.context for stage in data):
        console.print(context_table(data))
    for stage in data:
        if stage.tasks:
            console.print(task_table(stage))
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
    for stage in recipe.stages:
        first = next(segment for segment in plan.segments if segment.stage == stage)
        objective = recipe.objective_of(stage).describe(first.knobs_at(first.start_token))
        grid.add_row("objective", f"{stage}: {objective}")
    for stage, mixture in _mixtures(recipe, plan).items():
        grid.add_row("mixture", f"{stage}: {mixture}")
    for stage in data:
        if stage.responses is not None:
            grid.add_row("responses", f"{stage.stage}: {_responses(stage)}")
        if not stage.tasks:  # tasks have their own table
            grid.add_row("epochs", f"{stage.stage}: {_epochs(stage.epochs)}")
    if (why := not_counted(recipe, data)) is not None:
        grid.add_row("data", why)
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
    for line in _token_costs(recipe, plan, flops):
        grid.add_row("per token", line)
    for line in _memory(recipe, plan, machine):
        grid.add_row("memory", line)
    hours = None if machine is None else machine.hours(costs.flops)
    if machine is not None and not fits(recipe, plan, machine):
        grid.add_row("time", f"none: the recipe does not fit on {machine.gpus} × {machine.gpu}")
        hours = None
    elif hours is not None:
        rate = f"{machine.mfu:.1%} of {PEAK_FLOPS[machine.gpu] / 1e12:,.0f} TFLOP/s (bf16, dense)"
        grid.add_row("time", f"{hours:,.1f} hours on {machine.gpus} × {machine.gpu}, each at {rate}")
    grid.add_row("checkpoints", checkpoints_line(costs, hours))
    console.print(grid)


def plan_table(plan: Plan) -> Table:
    """Make a table with a row per segment, in the order of training; abandoned segments are where they are trained."""
    table = Table(title=plan.name, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_footer=True)
    table.add_column("stage", "kept" if plan.abandoned else "total", no_wrap=True)
    for heading, total in (
        ("updates", f"{plan.total_updates:,}"),
        ("rows", ""),
        ("length", ""),
        ("tokens", f"{plan.total_tokens:,}"),
    ):
        table.add_column(heading, total, justify="right", no_wrap=True)
    table.add_column("lr")  # it wraps, because a schedule of many points is long
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


def plan_json(recipe: Recipe, plan: Plan) -> dict:
    """Return a plan, the cost of a token and what the stages draw from the corpus, as plain JSON types."""
    return plan.to_json() | {
        "costs": {stage: costs.to_json() for stage, costs in token_costs(recipe, plan).items()},
        "memory": {stage: use.to_json() for stage, use in memory(recipe, plan).items()},
        "data": {stage.stage: stage.to_json() for stage in drawn_data(recipe, plan)},
    }


def context_table(stages: list[DrawnData]) -> Table:
    """Make a table with a row per stage: the shares of its targets that see at least 128, 512, … other tokens."""
    lengths = list(dict.fromkeys(length for stage in stages for length in stage.shown))
    title = "share of targets that see so many tokens"
    if any(stage.responses is not None for stage in stages):
        title += "; of conversations, response tokens only"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("context", no_wrap=True)
    for length in sorted(lengths):
        table.add_column(f"≥ {length:,}", justify="right", no_wrap=True)
    for stage in stages:
        shares = [stage.shown.get(length) for length in sorted(lengths)]
        table.add_row(stage.stage, *("" if share is None else f"{share:.1%}" for share in shares))
    return table


def task_table(stage: DrawnData) -> Table:
    """Make a table with a row per task of a stage: its rows, its share of the blocks, and how often rows are drawn."""
    table = Table(title=f"tasks of {stage.stage}", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("task", "kind", "rows", "share of blocks", "blocks per update", "epochs"):
        table.add_column(heading, justify="left" if heading in ("task", "kind") else "right")
    for name, task in stage.tasks.items():
        table.add_row(
            name, task.kind, f"{task.rows:,}", f"{task.share:.1%}", f"{task.blocks:.3g}", f"{task.epochs:.3g}"
        )
    return table


def _token_costs(recipe: Recipe, plan: Plan, flops: str | None) -> Iterator[str]:
    """Yield what a token costs at each row length, and how much slower that is than in the shorter rows before."""
    stages: dict[TokenCost, list[str]] = {}
    for stage, costs in token_costs(recipe, plan).items():
        stages.setdefault(costs, []).append(stage)
    before, source = list(stages), source_of(recipe)
    if isinstance(source, Source) and source.longest_row is not None:
        before.append(token_cost(recipe, plan.segments[0], source.longest_row))
    shortest = min(before, key=lambda costs: costs.row_length)
    for costs, names in stages.items():
        cost_of_one = f"{number(costs.flops)} FLOPs, {costs.attention:.1%} of them in attention"
        yield f"{', '.join(names)}: in rows of {costs.row_length:,}, {cost_of_one}"
        if costs.row_length > shortest.row_length:
            lost = f"{slower(costs.flops, shortest.flops):.1%}"
            if flops is not None:
                lost += f" ({slower(costs.megatron, shortest.megatron):.1%} as {flops} counts)"
            yield f"{lost} fewer tokens per second than in rows of {shortest.row_length:,}, at equal FLOP/s"


def _memory(recipe: Recipe, plan: Plan, machine: Machine | None) -> Iterator[str]:
    """Yield the memory that a GPU needs at each row length, and the part that is divided among the GPUs."""
    stages: dict[Memory, list[str]] = {}
    for stage, use in memory(recipe, plan).items():
        stages.setdefault(use, []).append(stage)
    for use, names in stages.items():
        line = (
            f"{', '.join(names)}: a microbatch of {use.rows:,} × {use.row_length:,} tokens keeps "
            f"{size(use.kept)} on a GPU"
        )
        if machine is not None:
            needed = use.of_a_gpu(_shards(recipe, machine))
            line += (
                f"; with its share of the model and {size(BESIDES)} for what is not counted, {size(needed + BESIDES)} "
                f"of {size(GPU_MEMORY[machine.gpu])}"
            )
            if not machine.holds(needed):
                line += ": does not fit; take fewer rows, or recompute"
        yield line
    if stages:
        yield f"{size(use.state)} of weights, gradients and moments, divided over the GPUs that share a copy"


def fits(recipe: Recipe, plan: Plan, machine: Machine) -> bool:
    """Return whether every row length of a plan fits the memory of a machine's GPUs."""
    return all(machine.holds(use.of_a_gpu(_shards(recipe, machine))) for use in memory(recipe, plan).values())


def _shards(recipe: Recipe, machine: Machine) -> int:
    """Return how many GPUs share a copy of the model."""
    return recipe.fsdp_config.degrees(machine.gpus, machine.nodes)[1]


def changing_knobs(plan: Plan) -> list[str]:
    """Return the knobs whose values change in a plan."""
    values: dict[str, set[float]] = {}
    for segment in plan.segments:
        for name, schedule in segment.knobs.items():
            values.setdefault(name, set()).update((schedule.start, schedule.end))
    return [name for name, found in values.items() if len(found) > 1]


def knob_range(name: str, first: Segment, last: Segment) -> str:
    """Format a knob's first and last value in a range of segments; one if they are equal, none if neither has it."""
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
    """Print the values at a token."""
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
    grid.add_column(overflow="fold")  # otherwise a long path would lose its end
    return grid


def checkpoints_line(costs: Cost, hours: float | None = None) -> str:
    """Return a sentence on the number and size of checkpoints.

    Args:
        hours: the duration of the training, if known; used for an interval in time.
    """
    one, written, kept = costs.checkpoint_bytes, costs.checkpoints_written, costs.checkpoints_kept
    if costs.save_seconds is not None:
        in_all = "" if hours is None else f", about {written + hours * 3600 / costs.save_seconds:,.0f} in all"
        stay = "all kept" if kept is None else f"at most {kept:,} kept, {size(kept * one)}"
        every = f"one every {costs.save_seconds / 60:,.4g} minutes of training"
        return f"{written:,} and {every}{in_all}, of {size(one)} (weights and two moments, float32); {stay}"
    stay = "all kept" if kept == written else f"{kept:,} kept, {size(kept * one)}"
    return f"{written:,} of {size(one)} (weights and two moments, float32), {size(written * one)} in all; {stay}"


def _mixtures(recipe: Recipe, plan: Plan) -> dict[str, str]:
    """Return the mixture by stage, because all segments of a stage share it."""
    shares = {segment.stage: segment.mixture or {} for segment in plan.segments}
    without = {
        stage: "every row once per epoch" if recipe.objective_of(stage).block_size is None else "the tasks' weights"
        for stage in shares
    }
    return {
        stage: ", ".join(f"{source} {share:g}" for source, share in grouped(mixture).items()) + _long(mixture)
        or without[stage]
        for stage, mixture in shares.items()
    }


def _epochs(epochs: dict[str, float]) -> str:
    """Return how often each source's rows are drawn; for many sources, the least and the most."""
    if len(epochs) > MOST_SOURCES:
        least, most = min(epochs, key=epochs.get), max(epochs, key=epochs.get)
        return f"{len(epochs):,} sources, from {epochs[least]:.3g} ({least}) to {epochs[most]:.3g} ({most})"
    return ", ".join(f"{name} {number:.3g}" for name, number in epochs.items())


def _responses(stage: DrawnData) -> str:
    """Return how many conversations are drawn, the assistant's share of their tokens, and its parts by source."""
    of_sources = [f"{source} {share:.1%}" for source, share in stage.responses.items()]
    among = f"; of them {', '.join(of_sources)}" if len(of_sources) > 1 else ""
    return f"{stage.response_share:.1%} of the tokens of {stage.conversations:,.0f} conversations{among}"


def _long(mixture: dict[str, float]) -> str:
    share = long_share(mixture)
    return "" if share is None else f"; {share:.1%} of the rows are of long documents"


def _tokens(segments: list[Segment] | tuple[Segment, ...]) -> int:
    return sum(segment.updates * segment.tokens_per_update for segment in segments)


def rates(first: Segment, last: Segment) -> str:
    """Format the learning rates in a range of segments: the first, those at turns of the schedule, and the last."""
    start, end, learning_rate = first.start_token, last.end_token, first.learning_rate
    between = [learning_rate.at(token) for token in learning_rate.turns if start < token < end]
    values = [number(rate) for rate in (learning_rate.at(start), *between, last.learning_rate.at(end))]
    return " → ".join(value for value, before in zip(values, [None, *values], strict=False) if value != before)
