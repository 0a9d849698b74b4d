"""Find what changed in a recipe since a run's last start, and decide whether the run can resume with it."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rotary_foundry.recipe.compilation import set_rollback
from rotary_foundry.recipe.extension_names import KINDS
from rotary_foundry.recipe.plan import Plan, Rollback, Segment
from rotary_foundry.recipe.schema import Recipe
from rotary_foundry.runs.recipes import load_recipe_and_plan
from rotary_foundry.runs.run_folder import RunFolder
from rotary_foundry.utils.errors import ConfigurationError, FoundryError
from rotary_foundry.utils.redaction import redacted

# Every update depends on these keys, so a run that has begun cannot change them.
FIXED = ("seed", "model", "init_from", "objective", "optimizer", "data.sources")
FIXED += ("data.shuffle_block_size",)
FREE = ("model.attn_implementation",)
FREE_IN_STAGE = "device_train_microbatch_size"
UPDATES_COMPARED = 64  # in each segment


@dataclass(frozen=True)
class Change:
    """A key whose value has changed."""

    key: str
    before: object
    after: object

    def __str__(self) -> str:
        return f"{self.key}: {self.before} → {self.after}"


def without_secrets(recipe: Recipe) -> Recipe:
    """Return a recipe with its secrets removed, for writing and display."""
    whole = asdict(recipe)
    return replace(recipe, **{key: _redacted_arguments(getattr(recipe, key), whole) for key in KINDS})


def _redacted_arguments(named: dict[str, Any], whole: dict) -> dict[str, Any]:
    """Redact arguments by their names, but never the name of a class, which may look secret (CountToken)."""
    return {name: redacted(arguments, whole) for name, arguments in named.items()}


def changes_of_run(folder: RunFolder, recipe: Recipe, plan: Plan) -> list[Change]:
    """List the changes of a recipe since the run's last start; empty if the run has no complete checkpoint here.

    A node with a disk of its own may have only its part of a checkpoint, with the other parts in a store.

    Raises:
        ConfigurationError: the run cannot resume with these changes.
        FoundryError: the run has checkpoints but none is usable, and there is no store.
    """
    try:
        newest = folder.newest_checkpoint()
    except FoundryError:
        if recipe.save_folder is None:
            raise
        newest = None
    if newest is None:
        return []
    try:
        before = load_recipe_and_plan(folder.recipe)
        return check_changes(before, (without_secrets(recipe), plan), folder.rollbacks(), newest.token)
    except ConfigurationError as error:
        raise ConfigurationError(f"{folder.path}: {error} (the run's recipe is {folder.recipe})") from error


def check_changes(
    old: tuple[Recipe, Plan], new: tuple[Recipe, Plan], rollbacks: Sequence[Rollback], token: int
) -> list[Change]:
    """List what changed in a recipe, and check that a run at `token` may continue with it.

    Args:
        old, new: the recipe, and its plan before any rollback.
        rollbacks: the rollbacks that the run has had.
        token: the token up to which the run is trained.

    Raises:
        ConfigurationError: a key changed that must not; names the key.
    """
    (before, before_plan), (after, after_plan) = old, new
    changes = list(_changes(asdict(before), asdict(after)))
    for change in changes:
        if change.key.startswith(FIXED) and change.key not in FREE:
            raise ConfigurationError(
                f"'{change.key}': {change.before} → {change.after}: every update depends on it, and the run has begun; "
                "set the old value, or another run_name"
            )
        if change.key.startswith("rollback.at") and any(rollback.trigger == "at" for rollback in rollbacks):
            raise ConfigurationError(
                f"'{change.key}': {change.before} → {change.after}: this rollback is already done; set the old value"
            )
    was, now = before_plan.after(rollbacks), after_plan.after(rollbacks)
    set_now = set_rollback(after, now)
    if before.rollback.at != after.rollback.at and set_now is not None and set_now.token <= token:
        raise ConfigurationError(
            f"'rollback.at.token': {after.rollback.at.token} is in the past of the run, which is at {token:_}; "
            "set a later token"
        )
    if token > now.total_tokens or _trained(was, token) != _trained(now, token):
        reached = list(was.stage_ends)[: was.segment_at(token).stage_index + 1]
        keys = [change.key for change in changes if not change.key.endswith(FREE_IN_STAGE)]
        guilty = [key for key in keys if key == "stages" or key.split(".")[1:2] in [[stage] for stage in reached]]
        change = next(change for change in changes if change.key in (guilty or keys))
        raise ConfigurationError(
            f"'{change.key}': {change.before} → {change.after} would change the first {token:_} tokens, which are "
            "already trained; set the old value, or another run_name"
        )
    return changes


def _changes(before: dict, after: dict, prefix: str = "") -> Iterator[Change]:
    for key in dict.fromkeys([*before, *after]):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            if prefix + key == "stages" and list(old) != list(new):
                yield Change("stages", ", ".join(old), ", ".join(new))
            yield from _changes(old, new, f"{prefix}{key}.")
        elif old != new:
            yield Change(prefix + key, old, new)


def _trained(plan: Plan, token: int) -> list[tuple[Segment, list[tuple]]]:
    """Return a plan's segments up to a token, with values of the learning rate and knobs instead of their formulas.

    The formula of an unfinished stage also describes its future, which may change.
    """
    segments = plan.between(0, min(token, plan.total_tokens))
    return [(replace(segment, learning_rate=None, knobs={}), _scheduled(segment)) for segment in segments]


def _scheduled(segment: Segment) -> list[tuple]:
    last = segment.updates - 1
    count = min(last, UPDATES_COMPARED)
    updates = {round(index * last / count) for index in range(count + 1)} if count else {0}
    starts = [segment.start_token + update * segment.tokens_per_update for update in sorted(updates)]
    return [(segment.learning_rate.at(start), segment.knobs_at(start)) for start in starts]
