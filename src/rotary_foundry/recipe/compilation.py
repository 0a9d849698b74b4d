"""Compile a recipe to its plan.

`compile_stages` returns the plan before any rollback. `compile_plan` adds the rollback that the recipe sets, if there
is one. Boundaries are rounded down to whole updates, so a stage never takes more tokens than its duration.
"""

from rotary_foundry.recipe.knobs import knob_schedule
from rotary_foundry.recipe.plan import LearningRate, Plan, Rollback, Segment
from rotary_foundry.recipe.schedules import parse_tokens
from rotary_foundry.recipe.schema import Recipe, StageConfig, Trigger
from rotary_foundry.utils.errors import ConfigurationError


def compile_plan(recipe: Recipe) -> Plan:
    """Compile a recipe to its plan: the kept trajectory, after the rollback that the recipe sets (`at`), if any.

    Raises:
        ConfigurationError: a stage or its ramp is too short for one update, or a rollback is outside the plan.
    """
    return with_set_rollback(recipe, compile_stages(recipe))


def compile_stages(recipe: Recipe) -> Plan:
    """Compile a recipe to its plan before any rollback.

    Raises:
        ConfigurationError: a stage or its ramp is too short for a single update.
    """
    segments: list[Segment] = []
    for index, (name, stage) in enumerate(recipe.stages.items()):
        start_token = token = segments[-1].end_token if segments else 0
        update = segments[-1].start_update + segments[-1].updates if segments else 0
        row = 0
        rungs = _rungs(name, stage)
        tokens = sum(rows * updates for rows, updates in rungs) * stage.row_length
        warmup = min(parse_tokens(stage.t_warmup, tokens), tokens)
        learning_rate = LearningRate(
            peak=stage.lr,
            start_token=start_token,
            end_token=start_token + tokens,
            warmup=warmup,
            decay=min(parse_tokens(stage.t_decay, tokens), tokens - warmup),  # rounding to updates may shorten a stage
            decay_shape=stage.decay_shape,
            alpha_f=stage.alpha_f,
            schedule=tuple((parse_tokens(time, tokens), factor) for time, factor in stage.lr_schedule or ()),
        )
        objective = recipe.objective if stage.objective is None else stage.objective
        knobs = {
            knob: knob_schedule(given, start_token, start_token + tokens)
            for knob, given in recipe.knobs_of(name).items()
        }
        optimizer = recipe.optimizer.changed(stage.optimizer).scheduled()
        for rows, updates in rungs:
            segment = Segment(
                stage=name,
                stage_index=index,
                updates=updates,
                rows=rows,
                row_length=stage.row_length,
                start_token=token,
                start_update=update,
                start_row=row,
                objective={"name": objective} if isinstance(objective, str) else dict(objective),
                knobs=knobs,
                learning_rate=learning_rate,
                optimizer=optimizer,
                mixture=stage.mixture,
            )
            segments.append(segment)
            token, update, row = segment.end_token, update + updates, row + updates * rows
    return Plan(recipe.run_name, tuple(segments))


def with_set_rollback(recipe: Recipe, plan: Plan) -> Plan:
    """Apply the rollback that the recipe sets, if any, to `plan`, which has no rollback yet.

    Raises:
        ConfigurationError: a rollback is outside the plan.
    """
    for token in named_tokens(recipe):
        if plan.boundary_before(token) == 0:
            raise ConfigurationError(
                f"'rollback': there is no checkpoint at {token:_} tokens, before the end of the first update at "
                f"{plan.segments[0].tokens_per_update:_}; go back to a later token"
            )
    rollback = set_rollback(recipe, plan)
    return plan.rolled_back(rollback) if rollback else plan


def set_rollback(recipe: Recipe, plan: Plan) -> Rollback | None:
    """Return the rollback that a recipe sets (`rollback.at`), rounded to the plan's update boundaries.

    Raises:
        ConfigurationError: the rollback is outside the plan.
    """
    if recipe.rollback.at is None:
        return None
    at = recipe.rollback.at
    token, to_token = parse_tokens(at.token), parse_tokens(at.to)
    if not 0 < to_token < token <= plan.total_tokens:
        raise ConfigurationError(
            f"'rollback.at': expected to go back from a token of the plan, which has {plan.total_tokens:_}, to an "
            f"earlier one, got from {token:_} to {to_token:_}"
        )
    return Rollback(
        trigger="at",
        why=f"the recipe sets it: token {token:_} is reached",
        token=plan.boundary_after(token),
        to_token=plan.boundary_before(to_token),
        lr=at.lr,
        weight_decay=at.weight_decay,
        data=at.data,
    )


def named_tokens(recipe: Recipe) -> set[int]:
    """Return the tokens that a recipe's rollback triggers name in `to`."""
    triggers = [value for value in vars(recipe.rollback).values() if isinstance(value, Trigger)]
    return {parse_tokens(trigger.to) for trigger in triggers if trigger.to is not None}


def _rungs(name: str, stage: StageConfig) -> list[tuple[int, int]]:
    """Return (rows, updates) for each batch size of a stage; every size of the ramp has the same number of updates."""
    tokens = parse_tokens(stage.duration)
    rungs: list[tuple[int, int]] = []
    ramp = stage.batch_size_ramp
    if ramp is not None:
        sizes = list(range(ramp.initial, stage.global_train_batch_size, ramp.increment))
        ramp_tokens = parse_tokens(ramp.duration, tokens)
        updates = ramp_tokens // (stage.row_length * sum(sizes))
        if updates < 1:
            raise ConfigurationError(
                f"'stages.{name}.batch_size_ramp': {ramp_tokens:_} tokens are too short for one update at "
                f"each of its {len(sizes)} sizes, which takes {stage.row_length * sum(sizes):_}"
            )
        rungs = [(rows, updates) for rows in sizes]
        tokens -= updates * stage.row_length * sum(sizes)
    updates = tokens // (stage.row_length * stage.global_train_batch_size)
    if updates < 1:
        raise ConfigurationError(
            f"'stages.{name}.duration': {max(tokens, 0):_} tokens are too short for one update of "
            f"{stage.global_train_batch_size} rows × {stage.row_length} tokens"
        )
    return [*rungs, (stage.global_train_batch_size, updates)]
