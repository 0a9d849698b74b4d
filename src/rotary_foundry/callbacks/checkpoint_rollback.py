"""CheckpointRollback: end training on all ranks at the same update if the run has to go back to a checkpoint.

It only raises RollbackDue; `training/rollback.py` does the rollback, because a Trainer cannot go back itself. Uses
BATCH_END, before the update's checkpoint is written.
"""

from composer.core import Callback, State
from composer.loggers import Logger

from rotary_foundry.callbacks.loss_watch import LossWatch
from rotary_foundry.optim.optimizers import RecipeOptimizer
from rotary_foundry.recipe.plan import Rollback
from rotary_foundry.runs.trouble import RollbackDue, Trouble

NORMS = {"grad": "gradient's norm", "update": "update's norm"}


class CheckpointRollback(Callback):
    """Raises RollbackDue.

    Args:
        watch: the detectors of trouble in the loss.
        planned: the rollback that the recipe sets for later, if there is one.
    """

    def __init__(self, watch: LossWatch, planned: Rollback | None):
        self.watch = watch
        self.planned = planned

    def batch_end(self, state: State, logger: Logger) -> None:
        token = state.timestamp.token.value
        tokens = token - state.previous_timestamp.token.value
        loss = state.total_loss_dict["loss/train/total"]  # Composer has all-reduced it, so all ranks decide alike
        trouble = self.watch.observe(state.dataloader_label, token, tokens, loss, norms_of(state.optimizers[0]))
        if trouble is None and self.planned is not None and token >= self.planned.token:
            trouble = Trouble(self.planned.trigger, self.planned.why, self.planned.to_token)
        if trouble is not None:
            raise RollbackDue(trouble, token)


def norms_of(optimizer: RecipeOptimizer) -> dict[str, float]:
    """Return the norms over all parameters, the same on every rank; empty if they are not recorded."""
    totals = {} if optimizer.metrics is None else optimizer.metrics.totals
    return {name: totals[kind] for kind, name in NORMS.items() if kind in totals}
