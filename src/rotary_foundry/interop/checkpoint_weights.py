"""Read in one process the weights of a sharded checkpoint that any number of ranks wrote.

A parameter is assembled from its shards when it is accessed. Nothing else is read, in particular not the optimizer's
state, which is twice as large as the weights. The heads of a multi-task stage are read separately from the network.
"""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed import checkpoint as dist_cp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from rotary_foundry.models.family import Family
from rotary_foundry.models.task_heads import HEADS, task_of_head
from rotary_foundry.models.weights import Weights, load_network
from rotary_foundry.runs.safe_reading import in_a_line, read_metadata, refuse_code
from rotary_foundry.runs.trained_state import TrainedState, find_trained_state
from rotary_foundry.utils.errors import DataError

WEIGHTS = "state.model.network."  # the prefix that Composer and our ComposerModel give the network's parameters


class CheckpointWeights(Weights):
    """A checkpoint's parameters of the network without the heads of tasks; with `heads`, only those of the heads.

    Raises:
        DataError: as for `refuse_code`.
    """

    def __init__(self, folder: Path, family: Family, heads: bool = False):
        self.folder = folder
        refuse_code(folder)
        stored = read_metadata(folder).state_dict_metadata
        self.stored = {
            key.removeprefix(WEIGHTS): value
            for key, value in stored.items()
            if key.startswith(WEIGHTS)
            and key.startswith(WEIGHTS + HEADS) == heads
            and isinstance(value, TensorStorageMetadata)
        }
        super().__init__(folder, family, {name: list(value.size) for name, value in self.stored.items()})

    def read(self, name: str) -> Tensor:
        stored = self.stored[name]
        wanted = {WEIGHTS + name: torch.empty(stored.size, dtype=stored.properties.dtype)}
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "torch.distributed is disabled")  # intended: one process reads it
                dist_cp.load(wanted, storage_reader=dist_cp.FileSystemReader(self.folder), no_dist=True)
        except CheckpointException as error:  # not derived from Exception, and its message is a traceback
            (cause, _), *_ = error.failures.values()
            raise DataError(f"{self.folder}: {name} cannot be read: {in_a_line(cause)}") from error
        return wanted[WEIGHTS + name]


def tasks_with_heads(folder: Path) -> set[str]:
    """Return the tasks of multi-task stages that have a head in a checkpoint.

    Raises:
        DataError: as for `read_metadata`.
    """
    stored = read_metadata(folder).state_dict_metadata
    return {task_of_head(key.removeprefix(WEIGHTS)) for key in stored if key.startswith(WEIGHTS + HEADS)}


def open_checkpoint(state: TrainedState) -> CheckpointWeights:
    """Open the weights of a checkpoint, after checking that they fit its recipe's model.

    Raises:
        DataError: they do not fit; names the first difference.
    """
    weights = CheckpointWeights(state.checkpoint.folder, state.family)
    weights.check(state.shape)
    return weights


def load_checkpoint(path: str | Path) -> nn.Module:
    """Load the network of a checkpoint (or of a run's newest), in evaluation mode."""
    state = find_trained_state(path)
    return load_network(state.shape, state.knobs, CheckpointWeights(state.checkpoint.folder, state.family))
