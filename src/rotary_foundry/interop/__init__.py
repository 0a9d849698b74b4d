"""In and out: Hugging Face directories and checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from rotary_foundry.models.modernbert.network import MaskedLM
    from rotary_foundry.recipe.schema import ModelConfig


def load_model(path: str | Path) -> "MaskedLM":
    """Load a model for inference.

    Args:
        path: an exported directory, any plain transformers ModernBERT directory, a checkpoint, or a run folder (its
            newest checkpoint).

    Returns:
        A module in evaluation mode; `model(input_ids, cu_seqlens)` takes flat int64 tokens [tokens] and int32
        cumulative document lengths [documents + 1], and returns logits [tokens, vocabulary].

    Raises:
        FoundryError: nothing there that can be loaded.
    """
    if (Path(path) / "config.json").is_file():
        from rotary_foundry.interop.huggingface import load_directory

        return load_directory(path)
    from rotary_foundry.interop.checkpoint_weights import load_checkpoint

    return load_checkpoint(path)


def open_weights(path: str | Path) -> "tuple[ModelConfig, Mapping[str, Tensor]]":
    """The shape of the model at a path, as `load_model` takes it, and its parameters, each read when asked for.

    Raises:
        FoundryError: nothing there that can be read.
    """
    if (Path(path) / "config.json").is_file():
        from rotary_foundry.interop.huggingface import open_directory

        config, _, weights = open_directory(Path(path))
        return config, weights
    from rotary_foundry.interop.checkpoint_weights import find_trained_state, open_checkpoint

    state = find_trained_state(path)
    return state.recipe.model, open_checkpoint(state)
