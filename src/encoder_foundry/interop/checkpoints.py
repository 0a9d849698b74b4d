"""Our sharded checkpoints on one process: the weights alone, whatever number of ranks wrote them.

The optimizer's state, twice the weights' size, is neither read nor held: a parameter is put together from its pieces
when it is asked for, and nothing else of the files is touched.
"""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed import checkpoint as dist_cp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from encoder_foundry.errors import ConfigurationError, DataError
from encoder_foundry.interop.safe_reading import in_a_line, read_metadata, refuse_code
from encoder_foundry.interop.weights import Weights, load_network
from encoder_foundry.model.masked_lm import MaskedLM
from encoder_foundry.recipe import Recipe, load_recipe
from encoder_foundry.recipe.plan import Segment, plan_in_force
from encoder_foundry.run_folder import CompleteCheckpoint, RunFolder, read_checkpoint

WEIGHTS = "state.model.network."  # where Composer and our ComposerMaskedLM put the network's parameters


@dataclass(frozen=True)
class TrainedState:
    """What training says of a checkpoint."""

    run: RunFolder
    checkpoint: CompleteCheckpoint
    recipe: Recipe
    trained: tuple[Segment, ...]  # what it was trained by, without what rollbacks abandoned; at least one

    @property
    def rope_theta(self) -> float:
        """Theta that the global layers were last trained with."""
        return self.trained[-1].rope_theta_global

    @property
    def longest_row(self) -> int:
        """In tokens."""
        return max(segment.row_length for segment in self.trained)


def find_trained_state(path: str | Path) -> TrainedState:
    """The checkpoint at a path, or the newest of the run at it, with its recipe.

    Raises:
        ConfigurationError: no complete checkpoint is there.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigurationError(f"{path}: no such file or folder")
    in_run = path.parent.name == "checkpoints"
    run = RunFolder(path.parent.parent if in_run else path)
    checkpoint = None
    if not path.is_file():
        checkpoint = read_checkpoint(path) if in_run else run.newest_checkpoint()
    if checkpoint is None:
        raise ConfigurationError(
            f"{path}: no complete checkpoint; give a run folder or RUN/checkpoints/ba<update> (a .pt file "
            "of Composer's and a transformers directory go through `encoder-foundry import`)"
        )
    recipe = load_recipe(run.recipe)
    plan = plan_in_force(recipe, run.rollbacks()[: checkpoint.rollbacks])
    trained = plan.between(0, checkpoint.token) or plan.segments[0].split(0)[:1]
    return TrainedState(run, checkpoint, recipe, trained)


class CheckpointWeights(Weights):
    """The network's parameters in a checkpoint.

    Raises:
        DataError: as `refuse_code`.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        refuse_code(folder)
        stored = read_metadata(folder).state_dict_metadata
        self.stored = {
            key.removeprefix(WEIGHTS): value
            for key, value in stored.items()
            if key.startswith(WEIGHTS) and isinstance(value, TensorStorageMetadata)
        }
        super().__init__(folder, {name: list(value.size) for name, value in self.stored.items()})

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
    weights = CheckpointWeights(state.checkpoint.folder)
    weights.check(state.recipe.model)
    return weights


def load_checkpoint(path: str | Path) -> MaskedLM:
    """The network of a checkpoint (or of a run's newest), in evaluation mode."""
    state = find_trained_state(path)
    config = replace(state.recipe.model, attn_implementation="auto")  # the run's was for the run's machine
    return load_network(config, state.rope_theta, CheckpointWeights(state.checkpoint.folder))
