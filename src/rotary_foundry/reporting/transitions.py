"""List every transition of a run: the update at which it was planned, and the one at which the records have it.

The updates are taken in the order in which they were trained, including the stretch that a set rollback abandons.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from rich import box
from rich.console import Console
from rich.table import Table

from rotary_foundry.recipe import Recipe
from rotary_foundry.recipe.compilation import compile_stages, set_rollback
from rotary_foundry.recipe.cost import checkpoint_tokens
from rotary_foundry.recipe.mixtures import grouped
from rotary_foundry.recipe.plan import Plan, Position
from rotary_foundry.runs.recipes import load_recipe
from rotary_foundry.runs.record_files import each_line
from rotary_foundry.runs.run_folder import RunFolder, complete_checkpoints
from rotary_foundry.utils.errors import FoundryError
from rotary_foundry.utils.wording import knob


@dataclass(frozen=True)
class Transition:
    """A change at the start of an update, or an action at its end."""

    what: str
    planned: str  # at which update
    happened: str

    @property
    def as_planned(self) -> bool:
        return self.planned == self.happened


@dataclass(frozen=True)
class Update:
    """An update of the plan, on the trajectory after a number of rollbacks."""

    rollbacks: int
    number: int  # from 1
    start: Position
    plan: Plan

    def __str__(self) -> str:
        again = " again" if self.rollbacks and self.plan.abandoned[-1].end_token > self.start.token else ""
        return f"{self.number}{again}"


def transitions(folder: RunFolder) -> list[Transition]:
    """Return a finished run's transitions: those at the start of an update, in order, then the files written."""
    recipe = load_recipe(folder.recipe)
    updates = list(_updates(recipe))
    trained = {(line["rollbacks"], line["batch"]): line for line in each_line(folder.metrics, ["rollbacks"])}
    pairs = [((before, after), _records(before, after, trained)) for before, after in pairwise(updates)]
    changes = [
        Transition(f"{what} {show(old)} → {show(new)}", str(pair[1]), _where(key, old, new, pair, pairs))
        for pair, _ in pairs
        for what, key, old, new, show in _changes(*pair)
    ]
    return [*changes, *_rollbacks(recipe, folder), *_evaluations(recipe, folder), *_saved(recipe, folder)]


def print_transitions(folder: RunFolder) -> None:
    """Print a run's transitions.

    Raises:
        FoundryError: something did not happen where it was planned.
    """
    found = transitions(folder)
    Console().print(table(found))
    missed = [transition.what for transition in found if not transition.as_planned]
    if missed:
        raise FoundryError(f"{folder.path}: {len(missed)} of {len(found)} did not go as planned: {'; '.join(missed)}")
    print(f"{folder.path}: all {len(found)} transitions went as planned")


def table(found: list[Transition]) -> Table:
    """Make a table of transitions for a terminal."""
    shown = Table("transition", "planned: update", "happened", "", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for transition in found:
        mark = "✓" if transition.as_planned else "✗"
        shown.add_row(transition.what, transition.planned, transition.happened, mark)
    return shown


def _updates(recipe: Recipe) -> Iterator[Update]:
    """Yield all updates in the order of training."""
    first = compile_stages(recipe)
    rollback = set_rollback(recipe, first)
    if rollback is None:
        yield from _stretch(first, 0, 0, first.total_tokens)
    else:
        yield from _stretch(first, 0, 0, rollback.token)
        yield from _stretch(first.rolled_back(rollback), 1, rollback.to_token, first.total_tokens)


def _stretch(plan: Plan, rollbacks: int, start: int, end: int) -> Iterator[Update]:
    for segment in plan.between(start, end):
        for update in range(segment.updates):
            position = plan.at(segment.start_token + update * segment.tokens_per_update)
            yield Update(rollbacks, position.update + 1, position, plan)


def _records(before: Update, after: Update, trained: dict[tuple[int, int], dict]) -> tuple[dict, dict]:
    return tuple(trained.get((update.rollbacks, update.number), {}) for update in (before, after))


def _where(key: str, old: object, new: object, planned: tuple[Update, Update], pairs: list) -> str:
    """Return the first update at which the records have this change, but the planned one if they have it there too."""
    for updates, (was, now) in sorted(pairs, key=lambda pair: pair[0] != planned):
        if (was.get(key), now.get(key)) == (old, new):
            return str(updates[1])
    return "nowhere"


def _changes(before: Update, after: Update) -> Iterator[tuple[str, str, object, object, Callable]]:
    """Yield each change from one update to the next: name, key in the records, both values, and how to show them."""
    was, now = before.start, after.start
    mixtures = [update.plan.segments[update.start.segment].mixture for update in (before, after)]
    mixtures = [mixture and grouped(mixture) for mixture in mixtures]  # as in the records
    if was.max_lr != now.max_lr or (was.lr != now.lr and (was.stage, before.rollbacks) != (now.stage, after.rollbacks)):
        lr = "learning rate"
    elif was.lr < was.max_lr == now.lr:
        lr = "end of the warm-up, learning rate"
    elif now.lr < now.max_lr == was.lr:
        lr = "start of the decay, learning rate"
    else:
        lr = None
    found = [
        ("stage", "stage", was.stage, now.stage, str),
        ("rows", "rows", was.rows, now.rows, str),
        ("row length", "row_length", was.row_length, now.row_length, "{:,}".format),
        *((name, name, was.knobs.get(name), now.knobs.get(name), _knob) for name in {**was.knobs, **now.knobs}),
        ("mixture", "mixture", *mixtures, _mixture),
        ("weight decay", "weight_decay", was.weight_decay, now.weight_decay, "{:g}".format),
        *(
            (key.replace("_", " "), key, *(_as_recorded(at.optimizer[key]) for at in (was, now)), str)
            for key in now.optimizer
            if key != "weight_decay"
        ),
        (lr, "lr", was.lr if lr else None, now.lr if lr else None, "{:g}".format),
    ]
    return ((what, key, old, new, show) for what, key, old, new, show in found if old != new)


def _knob(value: float | None) -> str:
    return "none" if value is None else knob(value)


def _as_recorded(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _mixture(mixture: dict[str, float] | None) -> str:
    return ", ".join(f"{source} {share:g}" for source, share in mixture.items()) if mixture else "every row once"


def _rollbacks(recipe: Recipe, folder: RunFolder) -> Iterator[Transition]:
    first = compile_stages(recipe)
    planned = set_rollback(recipe, first)
    expected = [(first.at(planned.token).update, first.at(planned.to_token).update)] if planned else []
    made = [(line["batch"], line["to_batch"]) for line in each_line(folder.ledger, ("batch", "to_batch"))]
    for index in range(max(len(expected), len(made))):
        yield Transition(f"rollback {index + 1}", *(_from_to(pairs, index) for pairs in (expected, made)))


def _from_to(pairs: list[tuple[int, int]], index: int) -> str:
    return f"{pairs[index][0]}, back to {pairs[index][1]}" if index < len(pairs) else "none"


def _evaluations(recipe: Recipe, folder: RunFolder) -> Iterator[Transition]:
    plan = compile_stages(recipe)
    done = {line["stage"]: line["batch"] for line in folder.records(folder.evaluations) if line["batch"]}
    for stage, end in plan.stage_ends.items():
        yield Transition(f"evaluation after {stage}", str(plan.at(end - 1).update + 1), str(done.get(stage, "none")))


def _saved(recipe: Recipe, folder: RunFolder) -> Iterator[Transition]:
    plan = compile_stages(recipe)
    due = [plan.at(token).update for token in checkpoint_tokens(recipe, plan)]
    there = complete_checkpoints([*folder.checkpoints.glob("ba*"), *folder.path.glob("abandoned/*/ba*")])
    batches = sorted({checkpoint.batch for checkpoint in there})
    yield Transition("checkpoints", *(", ".join(map(str, numbers)) for numbers in (due, batches)))
    exported = (folder.export / "config.json").is_file()
    yield Transition("export for transformers", "at the end", "at the end" if exported else "none")
