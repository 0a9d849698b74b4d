"""Read and write Hugging Face directories, and read checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rotary_foundry.models.config_json import CONFIG

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rotary_foundry.models.family import Family, Shape


def load_model(path: str | Path) -> "nn.Module":
    """Load a model for inference.

    Args:
        path: an exported directory, any transformers directory of one of our families, a checkpoint, or a run folder
            (its newest checkpoint).

    Returns:
        A module in evaluation mode; `model(input_ids, cu_seqlens)` takes flat int64 tokens [tokens] and int32
        cumulative document lengths [documents + 1], and returns logits [tokens, vocabulary].

    Raises:
        FoundryError: the path has no model that can be loaded.
    """
    if (Path(path) / CONFIG).is_file():
        from rotary_foundry.interop.huggingface import load_directory

        return load_directory(path)
    from rotary_foundry.interop.checkpoint_weights import load_checkpoint

    return load_checkpoint(path)


def open_weights(path: str | Path) -> "tuple[Family, Shape, Mapping[str, Tensor]]":
    """Return the family, shape and parameters of the model at a path (as for `load_model`); values are read on access.

    Raises:
        FoundryError: the path has no model that can be read.
    """
    if (Path(path) / CONFIG).is_file():
        from rotary_foundry.interop.huggingface import open_directory

        shape, _, weights = open_directory(Path(path))
        return weights.family, shape, weights
    from rotary_foundry.interop.checkpoint_weights import open_checkpoint
    from rotary_foundry.runs.trained_state import find_trained_state

    state = find_trained_state(path)
    return state.family, state.shape, open_checkpoint(state)
