"""What happens when a run goes back: a line in its ledger, and the later checkpoints out of the way.

The line is what counts. A run reads its ledger at every start, so whatever stops it afterwards, it goes on from there.
"""

import logging
from dataclasses import asdict

from rotary_foundry.recipe import Recipe
from rotary_foundry.recipe.plan import Plan, Rollback
from rotary_foundry.recipe.schedules import parse_tokens
from rotary_foundry.runs.checkpoint_store import CheckpointStore
from rotary_foundry.runs.run_folder import RunFolder, append_line
from rotary_foundry.runs.trouble import RollbackDue
from rotary_foundry.utils.errors import FoundryError

log = logging.getLogger(__name__)


def roll_back(recipe: Recipe, plan: Plan, folder: RunFolder, store: CheckpointStore | None, due: RollbackDue) -> None:
    """Decide where to go back to, and do so; on one rank. `plan` is the one in force until now.

    A store gets the line at the start that follows, and before that nothing there has changed: whichever of the two
    a crash leaves as the only ledger, the run goes on from what it says.

    Raises:
        FoundryError: the store cannot be reached, the recipe does not say what to do, there is no checkpoint to go back
            to, or there were too many rollbacks already. Nothing is changed then.
    """
    trouble, rollbacks = due.trouble, folder.rollbacks()
    trigger = getattr(recipe.rollback, trouble.trigger)
    stored = [] if store is None else store.checkpoints()
    last = folder.newest_checkpoint(trouble.since_token, stored)
    saved = f"the last checkpoint before it is {last.folder}" if last else "and there is no checkpoint before it"
    if trigger is None:
        raise FoundryError(
            f"{folder.path}: at token {due.token:_} {trouble.why}; {saved}. Go on with other values for "
            f"what lies ahead, or let the run go back by itself with rollback.{trouble.trigger}"
        )
    made = sum(rollback.trigger != "at" for rollback in rollbacks)
    if trouble.trigger != "at" and made >= recipe.rollback.max_rollbacks:
        raise FoundryError(
            f"{folder.path}: at token {due.token:_} {trouble.why}; rollback.max_rollbacks, "
            f"{recipe.rollback.max_rollbacks}, have been made already (see {folder.ledger}); {saved}"
        )
    wanted = trouble.since_token if trigger.to is None else min(trouble.since_token, parse_tokens(trigger.to))
    target = folder.newest_checkpoint(wanted, stored)
    if target is None:
        raise FoundryError(
            f"{folder.path}: at token {due.token:_} {trouble.why}; to go back to token {wanted:_} or before it takes a "
            "checkpoint there, and there is none: lower save_interval"
        )
    rollback = Rollback(
        trigger=trouble.trigger,
        why=trouble.why,
        token=due.token,
        to_token=target.token,
        lr=trigger.lr,
        weight_decay=trigger.weight_decay,
        data=trigger.data,
    )
    if plan.rolled_back(rollback).between(target.token, plan.total_tokens) == plan.between(
        target.token, plan.total_tokens
    ):
        raise FoundryError(
            f"{folder.path}: at token {due.token:_} {trouble.why}; going back to token {target.token:_} once more "
            f"would lead to the same again: give rollback.{trouble.trigger} another lr, or data: advance"
        )
    number = len(rollbacks) + 1
    batch = plan.at(due.token).update
    line = {"number": number, "batch": batch, "to_batch": target.batch} | asdict(rollback)
    append_line(folder.ledger, line, durable=True)
    folder.tidy_up()
    kept = "as it was"
    message = (
        f"rollback {number} ({rollback.trigger}): {rollback.why}; back from update {batch:_} (token "
        f"{rollback.token:_}) to update {target.batch:_} (token {rollback.to_token:_}); lr {rollback.lr or kept}, "
        f"weight decay {kept if rollback.weight_decay is None else rollback.weight_decay}, data: {rollback.data}"
    )
    log.warning(message)
    print(message, flush=True)
