"""CompleteCheckpointSaver: Composer's CheckpointSaver, whose checkpoints say of themselves that they are whole.

A checkpoint holds weights, optimizer state and Composer's timestamp; its COMPLETE file what the detectors of trouble
remember; and that is all: what a recipe decides is computed anew, so callbacks, loggers and loaders may change between
a run and its continuation. Uses BATCH_CHECKPOINT.
"""

import time
from pathlib import Path

from composer.core import Event, State
from composer.loggers import Logger
from composer.utils import create_interval_scheduler, dist
from composer.utils.checkpoint import get_save_filename
from torch.distributed.checkpoint.api import CheckpointException

from rotary_foundry.callbacks.loss_watch import LossWatch
from rotary_foundry.compat.composer import OpenCheckpointSaver
from rotary_foundry.loggers.wandb_run import WandBRun
from rotary_foundry.runs.checkpoint_store import CHECKPOINTS, CheckpointStore
from rotary_foundry.runs.run_folder import (
    CompleteCheckpoint,
    RunFolder,
    complete_checkpoints,
    mark_complete,
    remove_checkpoint,
)
from rotary_foundry.utils.errors import FoundryError

NOT_SAVED = [f"state/{key}" for key in ("schedulers", "algorithms", "callbacks", "scaler", "dataset_state")]
NOT_LOADED = ["rng", *NOT_SAVED]  # Composer saves its generators whatever one says; every microbatch seeds its own
SHOWS_UP = 90.0  # seconds that a shared disk has to show a file that another node has written; NFS caches for up to 60


class CompleteCheckpointSaver(OpenCheckpointSaver):
    """Marks a finished checkpoint complete, and keeps the newest few and those that a rollback may need.

    Args:
        folder: of the run.
        save_interval: as Composer's.
        due_tokens: where else to save: at the ends of stages, and where a rollback goes back to by name.
        num_checkpoints_to_keep: -1 for all of them.
        rollbacks: how many the run has had.
        watch: the detectors of trouble, for what they remember.
        needed_tokens: the last checkpoint at or before each of these is kept.
        store: takes every checkpoint as well, once it is complete in the folder.
    """

    def __init__(
        self,
        folder: RunFolder,
        save_interval: str,
        due_tokens: set[int],
        num_checkpoints_to_keep: int,
        rollbacks: int,
        watch: LossWatch,
        needed_tokens: set[int],
        store: CheckpointStore | None,
    ):
        due = create_interval_scheduler(save_interval, include_end_of_training=False)

        def due_or_set(state: State, event: Event) -> bool:
            return due(state, event) or (event == Event.BATCH_CHECKPOINT and state.timestamp.token.value in due_tokens)

        super().__init__(
            folder=str(folder.checkpoints),
            latest_filename=None,
            remote_file_name=None,
            latest_remote_file_name=None,
            save_interval=due_or_set,
            overwrite=True,
            ignore_keys=NOT_SAVED,
        )
        self.checkpoints = folder.checkpoints
        self.keep = num_checkpoints_to_keep
        self.rollbacks = rollbacks
        self.watch = watch
        self.needed_tokens = needed_tokens
        self.store = store

    def save(self, state: State, logger: Logger) -> None:
        """Save now, unless this update has been saved already."""
        if self.last_checkpoint_batch != state.timestamp.batch:
            self.write(state, logger)

    def write(self, state: State, logger: Logger) -> None:
        target = Path(get_save_filename(state, self.filename.format(state, keep_placeholders=True))).parent
        _remove_everywhere(target)  # written by a run that was killed after it, maybe of another number of ranks
        try:
            super().write(state, logger)  # ends with a barrier
        except CheckpointException as error:  # the disk is full, most likely; torch tells every rank of it
            if dist.get_global_rank() == 0:
                remove_checkpoint(target)
            causes = "; ".join(f"rank {rank}: {cause}" for rank, (cause, _) in error.failures.items())
            raise FoundryError(
                f"{target}: cannot be written ({causes}); earlier checkpoints are as they were, and the same command "
                "goes on from the newest"
            ) from error
        batch, token = state.timestamp.batch.value, state.timestamp.token.value
        own = _parts_of(dist.get_global_rank(), target)
        files = {name: size for parts in dist.all_gather_object(own) for name, size in parts.items()}
        checkpoint = CompleteCheckpoint(target, batch, token, self.rollbacks, self.watch.state_dict(), files)
        if self.store is None:
            _check_seen(target, files)
        if dist.get_global_rank() == 0:
            mark_complete(checkpoint)
            for old in self._outdated(complete_checkpoints(self.checkpoints.glob("ba*"))):
                remove_checkpoint(old.folder)
        dist.barrier()
        place = target.absolute().as_uri()
        if self.store is not None:
            outdated = self._outdated if self.keep > 0 else None
            if self.store.save(checkpoint, list(own), outdated):
                place = f"{self.store.url}/{CHECKPOINTS}{target.name}"
        for destination in logger.destinations:
            if isinstance(destination, WandBRun):
                destination.log_checkpoint(checkpoint, place)

    def _outdated(self, complete: list[CompleteCheckpoint]) -> list[CompleteCheckpoint]:
        """Those that need not be kept; `complete` are the kept trajectory's, oldest first."""
        if self.keep < 0:
            return []
        kept = {checkpoint.folder for checkpoint in complete[-self.keep :]}
        for needed in self.needed_tokens.union(self.watch.needs_tokens()):
            kept.update(checkpoint.folder for checkpoint in [c for c in complete if c.token <= needed][-1:])
        return [checkpoint for checkpoint in complete if checkpoint.folder not in kept]


def _check_seen(folder: Path, files: dict[str, int]) -> None:
    """See that rank 0 finds all parts of a checkpoint, as a resume will have to.

    Raises:
        FoundryError: on every rank; nodes have disks of their own. The parts are removed: no start could use them.
    """
    unseen: list[list[str]] = [[]]
    if dist.get_global_rank() == 0:
        until = time.monotonic() + SHOWS_UP
        while (unseen := [[name for name in files if not (folder / name).is_file()]])[0] and time.monotonic() < until:
            time.sleep(1)
    dist.broadcast_object_list(unseen)
    if unseen[0]:
        _remove_everywhere(folder)
        raise FoundryError(
            f"{folder}: {unseen[0][0]}, which another node has written, is not there for rank 0, so no resume could "
            "use this checkpoint; runs_folder has to be a folder that all nodes share, or save_folder=s3://… given"
        )


def _remove_everywhere(folder: Path) -> None:
    """Remove a checkpoint from rank 0's disk, and then what there is of it on nodes with disks of their own."""
    if dist.get_global_rank() == 0:
        remove_checkpoint(folder)
    dist.barrier()
    if dist.get_local_rank() == 0:
        remove_checkpoint(folder)
    dist.barrier()


def _parts_of(rank: int, folder: Path) -> dict[str, int]:
    """What a rank has written of a checkpoint, with sizes: rank 0 alone need not see the others' files."""
    paths = [*folder.glob(f"__{rank}_*"), *(folder.glob(".metadata") if rank == 0 else ())]
    return {path.name: path.stat().st_size for path in paths}
