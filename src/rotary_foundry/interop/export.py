"""Export a checkpoint to a directory that transformers loads without this package."""

from pathlib import Path

from rotary_foundry.interop.card import run_card
from rotary_foundry.interop.checkpoint_weights import find_trained_state, open_checkpoint
from rotary_foundry.interop.heads import Head
from rotary_foundry.interop.huggingface import export_model
from rotary_foundry.interop.trained_heads import TrainedHead
from rotary_foundry.interop.trained_tasks import trained_head
from rotary_foundry.utils.errors import ConfigurationError, check_utf_8


def export_checkpoint(path: str | Path, out_dir: str | Path, head: Head | None = None, task: str | None = None) -> None:
    """Write a checkpoint, or a run's newest, as a Hugging Face directory: safetensors, config, tokenizer and card.

    Args:
        path: a run folder, or a checkpoint in one, from any number of ranks.
        out_dir: the folder to write; created if necessary. An earlier export in it is replaced.
        head: a new classifier instead of the pretraining output.
        task: a task of a multi-task stage, whose trained head is exported too. A masked-LM task has no head.

    Raises:
        FoundryError: `path` has no complete checkpoint or no such task, or `out_dir` contains anything but an export.
    """
    check_utf_8(path, out_dir)
    state = find_trained_state(path)
    if head is not None and head.of not in state.family.huggingface.classifiers:
        raise ConfigurationError(f"a {state.family.title} with a {head.of} classifier is not supported; give no labels")
    exported: Head | TrainedHead | None = head if task is None else trained_head(state, task)
    export_model(
        open_checkpoint(state),
        state.family,
        state.shape,
        state.knobs,
        state.run.tokenizer,
        exported.row_length if isinstance(exported, TrainedHead) else state.longest_row,
        Path(out_dir),
        run_card(state, exported),
        exported,
    )
