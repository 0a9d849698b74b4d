"""Make the rehearsal of a recipe: a version that takes a few minutes on two cores and has every transition.

The rehearsal keeps the stages with their row lengths, knobs, learning rates and mixtures, and every batch size of the
ramp. Events inside a segment keep their relative position: the end of a warm-up, the start of a decay, a set rollback.
There are three decisions:

- The budgets are not scaled by one factor, because a ramp of 10 B tokens in 1,719 B would take less than an update.
  Instead, each *segment* gets a few updates, and every time inside it is mapped in proportion.
- Batch sizes keep their ratios within the ramp, at the smallest sizes that are divisible by the number of processes.
- A rehearsal has no plateau trigger, because a short run cannot tell a plateau from a slowly falling loss; no loggers
  and no `save_folder`, which are for the run itself; and no HSDP, which needs more processes. It saves every few
  updates and never by the clock, so that the plan knows the updates.
"""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import replace
from math import gcd
from typing import Any

from rotary_foundry.recipe.compilation import compile_stages
from rotary_foundry.recipe.plan import Plan
from rotary_foundry.recipe.schedules import parse_tokens
from rotary_foundry.recipe.schema import BatchSizeRamp, FSDPConfig, Recipe, StageConfig, Trigger
from rotary_foundry.recipe.validation import problems
from rotary_foundry.utils.errors import ConfigurationError

UPDATES_ON_A_RUNG = 2
UPDATES_AFTER_A_RAMP = 12
UPDATES_IN_A_STAGE = 8
SAVE_INTERVAL = "5ba"
MOST_TOKENS = 20_000_000


def rehearsal(recipe: Recipe, plan: Plan, world_size: int) -> Recipe:
    """Return the rehearsal of a recipe on `world_size` processes; `plan` is the recipe's plan before any rollback."""
    rows = {name: _rows(recipe, name, world_size) for name in recipe.stages}
    small = replace(
        recipe,
        run_name=f"{recipe.run_name}-rehearsal",
        model=replace(recipe.model, **vars(recipe.model.shape.rehearsal())),
        stages={
            name: _shortened(stage, *rows[name], _objective(recipe, stage, world_size))
            for name, stage in recipe.stages.items()
        },
        data=replace(recipe.data, num_workers=min(1, recipe.data.num_workers)),
        rollback=replace(recipe.rollback, at=None, plateau=None),
        fsdp_config=FSDPConfig(activation_checkpointing=recipe.fsdp_config.activation_checkpointing),
        save_interval=SAVE_INTERVAL,
        save_num_checkpoints_to_keep=-1,
        loggers={},
        save_folder=None,
    )
    clock = _Clock(plan, compile_stages(small))
    rehearsed = replace(
        small,
        stages={
            name: replace(
                small.stages[name],
                t_warmup=clock.stretch(_start(plan, name), _within(plan, name, stage.t_warmup)),
                t_decay=clock.stretch_before(plan.stage_ends[name], _within(plan, name, stage.t_decay)),
                **_knobs(recipe, plan, name, clock),
                lr_schedule=stage.lr_schedule and _schedule(clock, plan, name, stage.lr_schedule),
            )
            for name, stage in recipe.stages.items()
        },
        rollback=replace(
            small.rollback,
            **{
                kind: replace(trigger, **{key: clock.at(getattr(trigger, key)) for key in _times(trigger)})
                for kind, trigger in vars(recipe.rollback).items()
                if isinstance(trigger, Trigger) and kind != "plateau"
            },
        ),
    )
    tokens = sum(parse_tokens(stage.duration) for stage in rehearsed.stages.values())
    if tokens > MOST_TOKENS:
        raise ConfigurationError(
            f"'rehearse': on {world_size} processes it would take {tokens:_} tokens, more than {MOST_TOKENS:_}; use "
            "fewer processes, or a ramp with fewer sizes"
        )
    for key, complaint in problems(rehearsed):
        raise ConfigurationError(f"'rehearse': the rehearsal of this recipe would have an invalid '{key}': {complaint}")
    return rehearsed


class _Clock:
    """Maps a token of one plan to the token at the same place in the same segment of another plan."""

    def __init__(self, plan: Plan, small: Plan):
        self.edges = [0, *(segment.end_token for segment in plan.segments)]
        self.small_edges = [0, *(segment.end_token for segment in small.segments)]
        self.first = small.segments[0].tokens_per_update

    def __call__(self, token: int) -> int:
        index = min(bisect_right(self.edges, token), len(self.edges) - 1)
        low, high = self.edges[index - 1 : index + 1]
        small_low, small_high = self.small_edges[index - 1 : index + 1]
        return small_low + round((small_high - small_low) * (token - low) / (high - low))

    def at(self, time: str) -> str:
        """Map a time that the recipe sets, to no earlier than the first possible checkpoint."""
        return f"{max(self(parse_tokens(time)), self.first)}tok"

    def stretch(self, start: int, tokens: int) -> str:
        return f"{self(start + tokens) - self(start)}tok"

    def stretch_before(self, end: int, tokens: int) -> str:
        return f"{self(end) - self(end - tokens)}tok"


def _rows(recipe: Recipe, name: str, world_size: int) -> tuple[int, int | None]:
    """Return a stage's batch size in the rehearsal, and the common divisor of the sizes of its ramp, if it has one."""
    stage = recipe.stages[name]
    ramp = stage.batch_size_ramp
    if ramp is not None:
        unit = gcd(ramp.initial, ramp.increment, stage.global_train_batch_size)
        return stage.global_train_batch_size // unit * world_size, unit
    # scaled by the same factor as the previous stage, rounded to whole rows per process
    earlier = list(recipe.stages)[: list(recipe.stages).index(name)]
    if not earlier:
        return 2 * world_size, None
    before, rows_before = recipe.stages[earlier[-1]], _rows(recipe, earlier[-1], world_size)[0]
    share = rows_before / before.global_train_batch_size
    return max(1, round(stage.global_train_batch_size * share / world_size)) * world_size, None


def _objective(recipe: Recipe, stage: StageConfig, world_size: int) -> Any:
    """Return a stage's objective; in a multi-task one, a block has one row for each process."""
    given = recipe.objective if stage.objective is None else stage.objective
    if isinstance(given, Mapping) and "rows_per_block" in given:
        return {**given, "rows_per_block": world_size}
    return stage.objective


def _shortened(stage: StageConfig, rows: int, unit: int | None, objective: Any) -> StageConfig:
    """Return a stage with a few updates in each segment; times inside it are not mapped yet."""
    ramp = None
    ramp_tokens, updates = 0, UPDATES_IN_A_STAGE
    if stage.batch_size_ramp is not None:
        factor = rows * unit // stage.global_train_batch_size
        initial = stage.batch_size_ramp.initial // unit * factor
        increment = stage.batch_size_ramp.increment // unit * factor
        ramp_tokens = UPDATES_ON_A_RUNG * stage.row_length * sum(range(initial, rows, increment))
        ramp, updates = BatchSizeRamp(initial, increment, f"{ramp_tokens}tok"), UPDATES_AFTER_A_RAMP
    return replace(
        stage,
        duration=f"{ramp_tokens + updates * rows * stage.row_length}tok",
        global_train_batch_size=rows,
        device_train_microbatch_size=1,
        objective=objective,
        batch_size_ramp=ramp,
        t_warmup="0tok",
        t_decay="0tok",
        lr_schedule=None,
    )


def _knobs(recipe: Recipe, plan: Plan, name: str, clock: _Clock) -> dict[str, dict]:
    """Return a stage's knobs that move over a duration, with the duration mapped; it is at least a token."""
    start, knobs = _start(plan, name), {}
    for knob, given in recipe.knobs_of(name).items():
        if isinstance(given, Mapping) and "duration" in given:
            tokens = clock(start + _within(plan, name, given["duration"])) - clock(start)
            knobs[knob] = {**given, "duration": f"{max(1, tokens)}tok"}
    return knobs


def _schedule(clock: _Clock, plan: Plan, stage: str, points: list[list[Any]]) -> list[list[Any]]:
    """Map the points of a learning rate's schedule; if two are mapped to one token, the later is kept."""
    start = _start(plan, stage)
    mapped = {clock.stretch(start, _within(plan, stage, time)): factor for time, factor in points}
    return [[time, factor] for time, factor in mapped.items()]


def _times(trigger: Trigger) -> list[str]:
    return [key for key in ("token", "to") if getattr(trigger, key, None) is not None]


def _start(plan: Plan, stage: str) -> int:
    return next(segment.start_token for segment in plan.segments if segment.stage == stage)


def _within(plan: Plan, stage: str, time: str) -> int:
    tokens = plan.stage_ends[stage] - _start(plan, stage)
    return min(parse_tokens(time, tokens), tokens)
