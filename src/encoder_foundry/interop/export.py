"""From a checkpoint of ours to a directory that plain transformers loads."""

from pathlib import Path

from encoder_foundry.interop.checkpoints import find_trained_state, load_checkpoint
from encoder_foundry.interop.huggingface import export_model


def export_checkpoint(path: str | Path, out_dir: str | Path) -> None:
    """Write a checkpoint, or a run's newest, as a Hugging Face directory: safetensors, config and tokenizer.

    Raises:
        FoundryError: no complete checkpoint at `path`, or `out_dir` holds something else.
    """
    state = find_trained_state(path)
    export_model(
        load_checkpoint(path).state_dict(),  # through the network, so that weights and shape are known to agree
        state.recipe.model,
        state.rope_theta,
        Path(state.recipe.data.local) / "tokenizer",
        state.longest_row,
        Path(out_dir),
    )
