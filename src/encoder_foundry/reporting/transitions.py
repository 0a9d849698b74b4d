"""Every transition of a run, where its plan had it and where its records say that it happened.

The updates are followed in the order in which they were trained, the stretch that a set rollback abandons included.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from rich import box
from rich.console import Console
from rich.table import Table

from encoder_foundry.errors import FoundryError
from encoder_foundry.recipe import Recipe, load_recipe
from encoder_foundry.recipe.plan import Plan, Position, plan_in_force, set_rollback
from encoder_foundry.run_folder import RunFolder, complete_checkpoints, read_lines


@dataclass(frozen=True)
class Transition:
    """Something that changes at the start of an update, or is done at its end."""

    what: str
    planned: str  # at which update
    happened: str

    @property
    def as_planned(self) -> bool:
        return self.planned == self.happened


@dataclass(frozen=True)
class Update:
    """An update of the plan: of the trajectory after so many rollbacks."""

    rollbacks: int
    number: int  # from 1
    start: Position
    plan: Plan

    def __str__(self) -> str:
        again = " again" if self.rollbacks and self.plan.abandoned[-1].end_token > self.start.token else ""
        return f"{self.number}{again}"


def transitions(folder: RunFolder) -> list[Transition]:
    """The transitions of a finished run, in order."""
    recipe = load_recipe(folder.recipe)
    updates = list(_updates(recipe))
    trained = {(line["rollbacks"], line["batch"]): line for line in read_lines(folder.metrics)}
    found = [transition for before, after in pairwise(updates) for transition in _between(before, after, trained)]
    return [*found, *_rollbacks(recipe, folder), *_evaluations(recipe, folder), *_saved(recipe, updates, folder)]


def print_transitions(folder: RunFolder) -> None:
    """Print the list.

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
    """The list, for a terminal."""
    shown = Table("transition", "planned", "happened", "", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for transition in found:
        mark = "✓" if transition.as_planned else "✗"
        shown.add_row(transition.what, transition.planned, transition.happened, mark)
    return shown


def _updates(recipe: Recipe) -> Iterator[Update]:
    """All updates in the order in which they are trained."""
    first = plan_in_force(recipe, [])
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


def _between(before: Update, after: Update, trained: dict[tuple[int, int], dict]) -> Iterator[Transition]:
    """What changes from one update to the next."""
    was, now = before.start, after.start
    records = [trained.get((update.rollbacks, update.number), {}) for update in (before, after)]

    def change(what: str, key: str, old: object, new: object, show: Callable = str) -> Transition:
        happened = [record.get(key) for record in records] == [old, new]
        return Transition(
            f"{what} {show(old)} → {show(new)}",
            str(after),
            str(after) if happened else f"not there: {records[1].get(key)}",
        )

    if was.stage != now.stage:
        yield change("stage", "stage", was.stage, now.stage)
    if was.rows != now.rows:
        yield change("rows", "rows", was.rows, now.rows)
    if was.row_length != now.row_length:
        yield change("row length", "row_length", was.row_length, now.row_length, "{:,}".format)
    if was.rope_theta_global != now.rope_theta_global:
        yield change("theta", "rope_theta", was.rope_theta_global, now.rope_theta_global, "{:,.0f}".format)
    if was.weight_decay != now.weight_decay:
        yield change("weight decay", "weight_decay", was.weight_decay, now.weight_decay, "{:g}".format)
    mixtures = [update.plan.segments[update.start.segment].mixture for update in (before, after)]
    if mixtures[0] != mixtures[1]:
        yield change("mixture", "mixture", *mixtures, show=_mixture)
    if was.lr < was.max_lr and now.lr == now.max_lr and was.stage == now.stage:
        yield change("end of the warm-up, learning rate", "lr", was.lr, now.lr, "{:g}".format)
    elif was.lr == was.max_lr and now.lr < now.max_lr and was.stage == now.stage:
        yield change("start of the decay, learning rate", "lr", was.lr, now.lr, "{:g}".format)
    elif was.max_lr != now.max_lr:
        yield change("learning rate", "lr", was.lr, now.lr, "{:g}".format)


def _mixture(mixture: dict[str, float] | None) -> str:
    return ", ".join(f"{source} {share:g}" for source, share in mixture.items()) if mixture else "every row once"


def _rollbacks(recipe: Recipe, folder: RunFolder) -> Iterator[Transition]:
    first = plan_in_force(recipe, [])
    planned = set_rollback(recipe, first)
    expected = [(first.at(planned.token).update, first.at(planned.to_token).update)] if planned else []
    made = [(line["batch"], line["to_batch"]) for line in read_lines(folder.ledger)]
    for index in range(max(len(expected), len(made))):
        yield Transition(f"rollback {index + 1}", *(_from_to(pairs, index) for pairs in (expected, made)))


def _from_to(pairs: list[tuple[int, int]], index: int) -> str:
    return f"{pairs[index][0]}, back to {pairs[index][1]}" if index < len(pairs) else "none"


def _evaluations(recipe: Recipe, folder: RunFolder) -> Iterator[Transition]:
    plan = plan_in_force(recipe, [])
    done = {line["stage"]: line["batch"] for line in folder.records(folder.evaluations) if line["batch"]}
    for stage, end in plan.stage_ends.items():
        yield Transition(f"evaluation after {stage}", str(plan.at(end - 1).update + 1), str(done.get(stage, "none")))


def _saved(recipe: Recipe, updates: list[Update], folder: RunFolder) -> Iterator[Transition]:
    plan = plan_in_force(recipe, [])
    interval = int(recipe.save_interval.removesuffix("ba"))
    ends = {plan.at(end - 1).update + 1 for end in plan.stage_ends.values()}
    rollback = set_rollback(recipe, plan)
    if rollback is not None:
        ends.add(plan.at(rollback.to_token).update)
    last_before = plan.at(rollback.token).update if rollback else None  # it goes back before it would save
    due = sorted(
        {
            update.number
            for update in updates
            if (update.number % interval == 0 or update.number in ends)
            and not (update.rollbacks == 0 and update.number == last_before)
        }
    )
    there = complete_checkpoints([*folder.checkpoints.glob("ba*"), *folder.path.glob("abandoned/*/ba*")])
    batches = sorted({checkpoint.batch for checkpoint in there})
    yield Transition("checkpoints", *(", ".join(map(str, numbers)) for numbers in (due, batches)))
    last = updates[-1].number
    exported = (folder.export / "config.json").is_file()
    yield Transition("export for transformers", f"after {last}", f"after {last}" if exported else "none")
