"""Convert times in updates (`2000ba`) to tokens. Papers give warm-up and duration in updates; plans count tokens."""

import re
from dataclasses import fields, replace
from typing import Any

from rotary_foundry.recipe.plan import Plan
from rotary_foundry.recipe.schema import Recipe, StageConfig, Trigger
from rotary_foundry.utils.errors import ConfigurationError

UPDATES = re.compile(r"([0-9](?:_?[0-9]){0,29})ba")  # what int() reads
ROLLBACK_TIMES = ("token", "to", "window")


def in_tokens(recipe: Recipe) -> Recipe:
    """Return the recipe with all times of its stages in tokens or as shares of the stage.

    Raises:
        ConfigurationError: a stage with a batch-size ramp has a time in updates; names the key.
    """
    return replace(recipe, stages={name: _stage(name, stage) for name, stage in recipe.stages.items()})


def rollback_in_tokens(recipe: Recipe, plan: Plan) -> Recipe:
    """Return the recipe with its rollback's times in tokens. `token` and `to` count updates from the start of the run.

    Args:
        plan: the plan before any rollback.

    Raises:
        ConfigurationError: `window` is in updates, and updates differ in size; names the key.
    """
    triggers = {kind: trigger for kind, trigger in vars(recipe.rollback).items() if isinstance(trigger, Trigger)}
    changed = {kind: replace(trigger, **_of_trigger(kind, trigger, plan)) for kind, trigger in triggers.items()}
    return replace(recipe, rollback=replace(recipe.rollback, **changed))


def _of_trigger(kind: str, trigger: Trigger, plan: Plan) -> dict[str, str]:
    found = {}
    for key in ROLLBACK_TIMES:
        match = UPDATES.fullmatch(str(getattr(trigger, key, None)).strip())
        if match and key == "window" and len({segment.tokens_per_update for segment in plan.segments}) > 1:
            raise ConfigurationError(
                f"'rollback.{kind}.window': is in updates, which differ in size in this run; give it in tokens, such "
                "as 1_000_000tok"
            )
        if match:
            found[key] = f"{plan.token_after(int(match[1]))}tok"
    return found


def _stage(name: str, stage: StageConfig) -> StageConfig:
    tokens = stage.row_length * stage.global_train_batch_size  # per update
    values = {field.name: getattr(stage, field.name) for field in fields(stage)}
    changed = {key: converted for key, value in values.items() if (converted := _converted(value, tokens)) != value}
    if changed and stage.batch_size_ramp is not None:
        raise ConfigurationError(
            f"'stages.{name}.{min(changed)}': is in updates, which differ in size under batch_size_ramp; give it in "
            "tokens, such as 1_000_000tok, or as a share of the stage, such as 0.1dur"
        )
    return replace(stage, **changed)


def _converted(value: Any, tokens: int) -> Any:
    if isinstance(value, str) and (match := UPDATES.fullmatch(value.strip())):
        return f"{int(match[1]) * tokens}tok"
    if isinstance(value, dict):
        return {key: _converted(item, tokens) for key, item in value.items()}
    return [_converted(item, tokens) for item in value] if isinstance(value, list) else value
