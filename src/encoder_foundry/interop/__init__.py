"""In and out: Hugging Face directories and checkpoints."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from encoder_foundry.model.masked_lm import MaskedLM


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
        from encoder_foundry.interop.huggingface import load_directory

        return load_directory(path)
    from encoder_foundry.interop.checkpoints import load_checkpoint

    return load_checkpoint(path)
