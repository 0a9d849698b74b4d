"""Our sharded checkpoints on one process: the weights alone, whatever number of ranks wrote them."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed import checkpoint as dist_cp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from encoder_foundry.errors import ConfigurationError, DataError
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


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The network's parameters, whole and on the CPU; the optimizer's state is never read."""
    reader = dist_cp.FileSystemReader(folder)
    weights = {
        key: torch.empty(stored.size, dtype=stored.properties.dtype)
        for key, stored in reader.read_metadata().state_dict_metadata.items()
        if key.startswith(WEIGHTS) and isinstance(stored, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # that is what was asked for
        dist_cp.load(weights, storage_reader=reader, no_dist=True)
    return {key.removeprefix(WEIGHTS): value for key, value in weights.items()}


def load_checkpoint(path: str | Path) -> MaskedLM:
    """The network of a checkpoint (or of a run's newest), in evaluation mode."""
    state = find_trained_state(path)
    network = MaskedLM(state.recipe.model, state.rope_theta)
    try:
        network.load_state_dict(load_weights(state.checkpoint.folder))
    except RuntimeError as error:  # names or shapes
        raise DataError(f"{path}: the weights are not of the recipe's model: {' '.join(str(error).split())}") from error
    return network.eval()
