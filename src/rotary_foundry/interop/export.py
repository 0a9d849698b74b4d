"""From a checkpoint of ours to a directory that plain transformers loads."""

from pathlib import Path

from rotary_foundry.interop.card import run_card
from rotary_foundry.interop.checkpoint_weights import find_trained_state, open_checkpoint
from rotary_foundry.interop.heads import Head
from rotary_foundry.interop.huggingface import export_model


def export_checkpoint(path: str | Path, out_dir: str | Path, head: Head | None = None) -> None:
    """Write a checkpoint, or a run's newest, as a Hugging Face directory: safetensors, config, tokenizer and card.

    Args:
        path: of a run folder, or a checkpoint in one; of any number of ranks.
        out_dir: made if need be; an earlier export there is replaced.
        head: a new classifier instead of the masked-LM decoder.

    Raises:
        FoundryError: no complete checkpoint at `path`, or `out_dir` holds something else.
    """
    state = find_trained_state(path)
    export_model(
        open_checkpoint(state),
        state.family,
        state.shape,
        state.knobs,
        state.run.tokenizer,
        state.longest_row,
        Path(out_dir),
        run_card(state, head),
        head,
    )
