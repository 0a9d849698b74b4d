"""CompleteCheckpointSaver: Composer's CheckpointSaver, whose checkpoints say of themselves that they are whole.

A checkpoint holds weights, optimizer state and Composer's timestamp, and nothing else: what a recipe decides is
computed anew, so callbacks, loggers and loaders may change between a run and its continuation.
"""

from pathlib import Path

from composer.callbacks import CheckpointSaver
from composer.core import Event, State
from composer.loggers import Logger
from composer.utils import create_interval_scheduler, dist
from composer.utils.checkpoint import get_save_filename

from encoder_foundry.recipe import Plan
from encoder_foundry.run_folder import complete_checkpoints, mark_complete, remove_checkpoint

NOT_SAVED = [f"state/{key}" for key in ("schedulers", "algorithms", "callbacks", "scaler", "dataset_state")]
NOT_LOADED = ["rng", *NOT_SAVED]  # Composer saves its generators whatever one says; every microbatch seeds its own


class CompleteCheckpointSaver(CheckpointSaver):
    """Marks a finished checkpoint complete, and keeps the newest few.

    Args:
        folder: where the checkpoint folders go.
        save_interval: as Composer's; the end of every stage is saved as well.
        plan: for the ends of the stages.
        num_checkpoints_to_keep: -1 for all of them.
    """

    def __init__(self, folder: str | Path, save_interval: str, plan: Plan, num_checkpoints_to_keep: int):
        due = create_interval_scheduler(save_interval, include_end_of_training=False)
        stage_ends = set(plan.stage_ends.values())

        def due_or_stage_end(state: State, event: Event) -> bool:
            at_stage_end = event == Event.BATCH_CHECKPOINT and state.timestamp.token.value in stage_ends
            return at_stage_end or due(state, event)

        super().__init__(
            folder=str(folder),
            latest_filename=None,
            remote_file_name=None,
            latest_remote_file_name=None,
            save_interval=due_or_stage_end,
            overwrite=True,
            ignore_keys=NOT_SAVED,
        )
        self.keep = num_checkpoints_to_keep

    def _save_checkpoint(self, state: State, logger: Logger) -> None:
        target = Path(get_save_filename(state, self.filename.format(state, keep_placeholders=True))).parent
        if dist.get_global_rank() == 0:
            remove_checkpoint(target)  # written by a run that was killed after it, maybe of another number of ranks
        dist.barrier()
        super()._save_checkpoint(state, logger)  # ends with a barrier
        if dist.get_global_rank() == 0:
            mark_complete(target, state.timestamp.batch.value, state.timestamp.token.value)
            self._drop_old(target)
        dist.barrier()

    def _drop_old(self, newest: Path) -> None:
        if self.keep < 0:
            return
        complete = complete_checkpoints(newest.parent.glob("ba*"))
        for checkpoint in complete[: max(0, len(complete) - max(1, self.keep))]:
            remove_checkpoint(checkpoint.folder)
