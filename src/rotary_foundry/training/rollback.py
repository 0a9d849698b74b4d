"""Roll a run back: append a line to its ledger, and move the later checkpoints away.

The line decides. A run reads its ledger at every start, so if it is interrupted after the line, it resumes from there.
"""

import logging
from dataclasses import asdict

from rotary_foundry.recipe import Recipe
from rotary_foundry.recipe.plan import Plan, Rollback
from rotary_foundry.recipe.schedules import parse_tokens
from rotary_foundry.runs.checkpoint_store import CheckpointStore
from rotary_foundry.runs.record_files import append_line
from rotary_foundry.runs.run_folder import RunFolder
from rotary_foundry.runs.trouble import RollbackDue
from rotary_foundry.utils.errors import FoundryError

log = logging.getLogger(__name__)


def roll_back(recipe: Recipe, plan: Plan, folder: RunFolder, store: CheckpointStore | None, due: RollbackDue) -> None:
    """Choose the checkpoint to go back to, and roll back. Call it on one rank; `plan` is the plan until now.

    The line is uploaded to the store at the next start; until then nothing in the store has changed. If a crash leaves
    only one of the two ledgers, the run resumes from that one.

    Raises:
        FoundryError: the store cannot be reached, the recipe has no trigger for the trouble, there is no checkpoint to
            go back to, or there were too many rollbacks already. Nothing is changed then.
    """
    trouble, rollbacks = due.trouble, folder.rollbacks()
    trigger = getattr(recipe.rollback, trouble.trigger)
    stored = [] if store is None else store.checkpoints()
    last = folder.newest_checkpoint(trouble.since_token, stored)
    saved = f"the last checkpoint before it is {last.folder}" if last else "there is no checkpoint before it"
    if trigger is None:
        raise FoundryError(
            f"{folder.path}: at token {due.token:_} {trouble.why}; {saved}. Change the recipe for "
            f"later tokens and resume, or let the run go back by itself with rollback.{trouble.trigger}"
        )
    made = sum(rollback.trigger != "at" for rollback in rollbacks)
    if trouble.trigger != "at" and made >= recipe.rollback.max_rollbacks:
        raise FoundryError(
            f"{folder.path}: at token {due.token:_} {trouble.why}; rollback.max_rollbacks, "
            f"{recipe.rollback.max_rollbacks}, is reached (see {folder.ledger}); {saved}"
        )
    wanted = trouble.since_token if trigger.to is None else min(trouble.since_token, parse_tokens(trigger.to))
    target = folder.newest_checkpoint(wanted, stored)
    if target is None:
        raise FoundryError(
            f"{folder.path}: at token {due.token:_} {trouble.why}; there is no checkpoint at "
            f"or before token {wanted:_} to go back to; lower save_interval"
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
            f"{folder.path}: at token {due.token:_} {trouble.why}; going back to token {target.token:_} again "
            f"would repeat the same trajectory; set another rollback.{trouble.trigger}.lr, or data: advance"
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
