"""CompleteCheckpointSaver: Composer's CheckpointSaver, which also marks finished checkpoints as complete.

A checkpoint holds weights, optimizer state and Composer's timestamp. Its COMPLETE file holds the state of the detectors
of trouble. Nothing else is saved, because everything that a recipe decides is computed again. So callbacks, loggers and
loaders may change between a run and its continuation. Uses BATCH_CHECKPOINT.
"""

import time
from contextlib import suppress
from pathlib import Path

from composer.core import Event, State
from composer.loggers import Logger
from composer.utils import create_interval_scheduler, dist
from composer.utils.checkpoint import get_save_filename
from torch.distributed.checkpoint.api import CheckpointException

from rotary_foundry.callbacks.loss_watch import LossWatch
from rotary_foundry.callbacks.run_records import RunRecords
from rotary_foundry.compat.composer import OpenCheckpointSaver
from rotary_foundry.loggers.wandb_run import WandBRun
from rotary_foundry.runs.checkpoint_store import CHECKPOINTS, CheckpointStore
from rotary_foundry.runs.run_folder import (
    FIRST,
    CompleteCheckpoint,
    RunFolder,
    complete_checkpoints,
    mark_complete,
    remove_checkpoint,
)
from rotary_foundry.utils.errors import FoundryError

NOT_SAVED = [f"state/{key}" for key in ("schedulers", "algorithms", "callbacks", "scaler", "dataset_state")]
NOT_LOADED = ["rng", *NOT_SAVED]  # Composer always saves generators, but every microbatch seeds its own
SHOWS_UP = 90.0  # seconds until a file from another node must be visible on a shared disk; NFS caches for up to 60


class CompleteCheckpointSaver(OpenCheckpointSaver):
    """Marks a finished checkpoint complete, and keeps the newest few and those that a rollback may need.

    Args:
        folder: the run's folder.
        save_interval: as in Composer.
        due_tokens: further tokens to save at: the ends of stages, and the tokens that a rollback names.
        num_checkpoints_to_keep: -1 to keep all.
        rollbacks: the number of rollbacks that the run has had.
        begun: whether the run starts at a checkpoint.
        watch: the detectors of trouble, whose state is saved.
        needed_tokens: the last checkpoint at or before each of these is kept.
        records: its lines are written before a checkpoint.
        store: gets a copy of every checkpoint after it is complete in the folder.
    """

    def __init__(
        self,
        folder: RunFolder,
        save_interval: str,
        due_tokens: set[int],
        num_checkpoints_to_keep: int,
        rollbacks: int,
        begun: bool,
        watch: LossWatch,
        needed_tokens: set[int],
        records: RunRecords,
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
        self.begun = begun
        self.watch = watch
        self.needed_tokens = needed_tokens
        self.records = records
        self.store = store

    def save(self, state: State, logger: Logger) -> None:
        """Save now, unless this update is already saved."""
        if self.last_checkpoint_batch != state.timestamp.batch:
            self.write(state, logger)

    def write(self, state: State, logger: Logger) -> None:
        self.records.wait()
        target = Path(get_save_filename(state, self.filename.format(state, keep_placeholders=True))).parent
        _remove_everywhere(target)  # left by a killed run, perhaps with another number of ranks
        if not self.begun and dist.get_global_rank() == 0:
            with suppress(OSError):  # a full disk is reported below, on every rank
                target.mkdir(parents=True, exist_ok=True)  # another rank may have made it already
                (target / FIRST).touch()
        try:
            super().write(state, logger)  # ends with a barrier
        except CheckpointException as error:  # most likely the disk is full; torch raises this on every rank
            if dist.get_global_rank() == 0:
                remove_checkpoint(target)
            causes = "; ".join(f"rank {rank}: {cause}" for rank, (cause, _) in error.failures.items())
            raise FoundryError(
                f"{target}: cannot be written ({causes}); earlier checkpoints are unchanged, and the same command "
                "resumes from the newest"
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
        self.begun = True
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
        """Return the checkpoints that need not be kept; `complete` are those of the kept trajectory, oldest first."""
        if self.keep < 0:
            return []
        kept = {checkpoint.folder for checkpoint in complete[-self.keep :]}
        for needed in self.needed_tokens.union(self.watch.needs_tokens()):
            kept.update(checkpoint.folder for checkpoint in [c for c in complete if c.token <= needed][-1:])
        return [checkpoint for checkpoint in complete if checkpoint.folder not in kept]


def _check_seen(folder: Path, files: dict[str, int]) -> None:
    """Check that rank 0 finds all parts of a checkpoint, as a resume will have to.

    Raises:
        FoundryError: on every rank, if nodes have separate disks. The parts are removed, because no start could use
        them.
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
            f"{folder}: rank 0 cannot see {unseen[0][0]}, which another node has written, so no resume could use this "
            "checkpoint; set runs_folder to a folder that all nodes share, or set save_folder=s3://…"
        )


def _remove_everywhere(folder: Path) -> None:
    """Remove a checkpoint from rank 0's disk, and then its parts on nodes with disks of their own."""
    if dist.get_global_rank() == 0:
        remove_checkpoint(folder)
    dist.barrier()
    if dist.get_local_rank() == 0:
        remove_checkpoint(folder)
    dist.barrier()


def _parts_of(rank: int, folder: Path) -> dict[str, int]:
    """Return the files of a checkpoint that a rank has written, with sizes; rank 0 may not see those of other ranks."""
    paths = [*folder.glob(f"__{rank}_*"), *(folder.glob(".metadata") if rank == 0 else ())]
    return {path.name: path.stat().st_size for path in paths}
