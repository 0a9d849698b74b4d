"""Our sharded checkpoints on one process: the weights alone, whatever number of ranks wrote them.

The optimizer's state, twice the weights' size, is neither read nor held: a parameter is put together from its pieces
when it is asked for, and nothing else of the files is touched.
"""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed import checkpoint as dist_cp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from rotary_foundry.models.family import Family
from rotary_foundry.models.weights import Weights, load_network
from rotary_foundry.runs.safe_reading import in_a_line, read_metadata, refuse_code
from rotary_foundry.runs.trained_state import TrainedState, find_trained_state
from rotary_foundry.utils.errors import DataError

WEIGHTS = "state.model.network."  # where Composer and our ComposerModel put the network's parameters


class CheckpointWeights(Weights):
    """The network's parameters in a checkpoint.

    Raises:
        DataError: as `refuse_code`.
    """

    def __init__(self, folder: Path, family: Family):
        self.folder = folder
        refuse_code(folder)
        stored = read_metadata(folder).state_dict_metadata
        self.stored = {
            key.removeprefix(WEIGHTS): value
            for key, value in stored.items()
            if key.startswith(WEIGHTS) and isinstance(value, TensorStorageMetadata)
        }
        super().__init__(folder, family, {name: list(value.size) for name, value in self.stored.items()})

    def read(self, name: str) -> Tensor:
        stored = self.stored[name]
        wanted = {WEIGHTS + name: torch.empty(stored.size, dtype=stored.properties.dtype)}
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "torch.distributed is disabled")  # that is what was asked for
                dist_cp.load(wanted, storage_reader=dist_cp.FileSystemReader(self.folder), no_dist=True)
        except CheckpointException as error:  # no Exception, and its message a traceback
            (cause, _), *_ = error.failures.values()
            raise DataError(f"{self.folder}: {name} cannot be read: {in_a_line(cause)}") from error
        return wanted[WEIGHTS + name]


def open_checkpoint(state: TrainedState) -> CheckpointWeights:
    """The weights of a checkpoint, which are known to be of its recipe's model.

    Raises:
        DataError: they are not; the first that differs.
    """
    weights = CheckpointWeights(state.checkpoint.folder, state.family)
    weights.check(state.shape)
    return weights


def load_checkpoint(path: str | Path) -> nn.Module:
    """Load the network of a checkpoint (or of a run's newest), in evaluation mode."""
    state = find_trained_state(path)
    return load_network(state.shape, state.knobs, CheckpointWeights(state.checkpoint.folder, state.family))
