"""WandBRun: Composer's WandBLogger, changed so that a run stays one W&B run through resumes and rollbacks.

- The W&B id is kept in the run's folder. In a rollback, the W&B run stays open while one Trainer replaces the other.
  W&B ignores a step that is not higher than the last, so the number of abandoned updates is added to all later steps.
  If a killed run logged updates after its checkpoint, they are trained again with identical values, and W&B keeps the
  first.
- The x axis is the token clock, by `define_metric`; steps only order W&B's rows.
- The config is the recipe with its overrides, and the commit of this code. Secrets are removed from it and from the
  command line, which W&B records by itself.
- After a stop signal the run is marked as preempted, not as failed. Composer would mark every exception as a failure.
- If configured, a checkpoint is recorded as a reference to its location, so W&B stores its name and not its content.

wandb takes seconds to import, so it is imported where it is used, as Composer does. Uses INIT and POST_CLOSE.
"""

import sys
from typing import Any

from composer.core import State
from composer.loggers import Logger
from composer.utils import dist

from rotary_foundry.compat.composer import OpenWandBLogger
from rotary_foundry.loggers.metric_keys import X_AXIS
from rotary_foundry.runs.run_folder import CompleteCheckpoint
from rotary_foundry.runs.trouble import RollbackDue
from rotary_foundry.utils.errors import StopRequested
from rotary_foundry.utils.redaction import redacted_arguments


class WandBRun(OpenWandBLogger):
    """Logs to one W&B run.

    Args:
        first_step: the step of update 0: the number of abandoned updates plus the number of rollbacks.
        secret_in: plain data whose secrets are removed from the command line that W&B records.
        checkpoint_references: log every complete checkpoint as an artifact that refers to it.
        arguments: arguments of Composer's WandBLogger.
    """

    def __init__(self, first_step: int, secret_in: Any, checkpoint_references: bool, **arguments: Any):
        super().__init__(**arguments)
        self.first_step = first_step
        self.secret_in = secret_in
        self.checkpoint_references = checkpoint_references

    def init(self, state: State, logger: Logger) -> None:
        import wandb

        if self.enabled and wandb.run is not None:  # after a rollback
            entity_and_project = [wandb.run.entity, wandb.run.project]
            dist.broadcast_object_list(entity_and_project)  # as in Composer's init, which the other ranks are in
            self.entity, self.project = entity_and_project
            return
        command = sys.argv
        sys.argv = [command[0], *redacted_arguments(command[1:], self.secret_in)]
        try:
            super().init(state, logger)
        finally:
            sys.argv = command
        if self.enabled:
            wandb.run.define_metric(X_AXIS)
            wandb.run.define_metric("*", step_metric=X_AXIS)

    def log_hyperparameters(self, hyperparameters: dict[str, Any]) -> None:
        if self.enabled:
            import wandb

            wandb.config.update(hyperparameters, allow_val_change=True)  # a resumed run may be on other machines

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        super().log_metrics(metrics, None if step is None else step + self.first_step)

    def log_checkpoint(self, checkpoint: CompleteCheckpoint, place: str) -> None:
        """Log a reference to a complete checkpoint by the URL of its folder, if that is configured."""
        if self.enabled and self.checkpoint_references:
            import wandb

            metadata = {"batch": checkpoint.batch, "token": checkpoint.token, "rollbacks": checkpoint.rollbacks}
            artifact = wandb.Artifact(f"checkpoint-{wandb.run.id}", type="checkpoint", metadata=metadata)
            artifact.add_reference(place, name=checkpoint.folder.name, checksum=False)
            wandb.run.log_artifact(artifact, aliases=["latest", checkpoint.folder.name])

    def post_close(self) -> None:
        ended_by = sys.exception()
        if isinstance(ended_by, RollbackDue):
            return  # the next Trainer continues in the same W&B run
        if isinstance(ended_by, StopRequested) and self.enabled:
            import wandb

            wandb.run.mark_preempting()
        super().post_close()
