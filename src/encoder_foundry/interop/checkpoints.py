"""Our sharded checkpoints on one process: the weights alone, whatever number of ranks wrote them."""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed import checkpoint as dist_cp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from encoder_foundry.errors import ConfigurationError, DataError
from encoder_foundry.interop.safe_reading import read_metadata, refuse_code
from encoder_foundry.model.masked_lm import MaskedLM
from encoder_foundry.recipe import Recipe, compile_plan, load_recipe
from encoder_foundry.run_folder import CompleteCheckpoint, RunFolder, read_checkpoint

WEIGHTS = "state.model.network."  # where Composer and our ComposerMaskedLM put the network's parameters


@dataclass(frozen=True)
class TrainedState:
    """What training says of a checkpoint."""

    checkpoint: CompleteCheckpoint
    recipe: Recipe
    rope_theta: float  # that the global layers were last trained with
    longest_row: int  # tokens


def find_trained_state(path: str | Path) -> TrainedState:
    """The checkpoint at a path, or the newest of the run at it, with its recipe.

    Raises:
        ConfigurationError: no complete checkpoint is there.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigurationError(f"{path}: no such file or folder")
    in_run = path.parent.name == "checkpoints"
    folder = RunFolder(path.parent.parent if in_run else path)
    checkpoint = read_checkpoint(path) if in_run else folder.newest_checkpoint()
    if checkpoint is None:
        raise ConfigurationError(f"{path}: no complete checkpoint; give a run folder or RUN/checkpoints/ba<update>")
    recipe = load_recipe(folder.recipe)
    trained = [segment for segment in compile_plan(recipe).segments if segment.start_token < max(checkpoint.token, 1)]
    return TrainedState(
        checkpoint, recipe, trained[-1].rope_theta_global, max(segment.row_length for segment in trained)
    )


class CheckpointWeights(Mapping[str, Tensor]):
    """The network's parameters in a checkpoint, whole and on the CPU; one is read when it is asked for.

    The optimizer's state is never read.

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

    def __getitem__(self, name: str) -> Tensor:
        stored = self.stored[name]
        wanted = {WEIGHTS + name: torch.empty(stored.size, dtype=stored.properties.dtype)}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # that is what was asked for
            dist_cp.load(wanted, storage_reader=dist_cp.FileSystemReader(self.folder), no_dist=True)
        return wanted[WEIGHTS + name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


def load_checkpoint(path: str | Path) -> MaskedLM:
    """The network of a checkpoint (or of a run's newest), in evaluation mode."""
    state = find_trained_state(path)
    config = replace(state.recipe.model, attn_implementation="auto")  # the run's was for the run's machine
    network = MaskedLM(config, state.rope_theta)
    try:
        network.load_state_dict(dict(CheckpointWeights(state.checkpoint.folder)))
    except RuntimeError as error:  # names or shapes
        raise DataError(f"{path}: the weights are not of the recipe's model: {' '.join(str(error).split())}") from error
    return network.eval()
