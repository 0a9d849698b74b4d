"""Whether a tokenizer is the model's: shards' of the model that is to go on from them, or one that is given for it.

A model of the same vocabulary's size takes any ids, and its embeddings of them mean nothing: the loss starts where a
model of random weights starts, and training hides that soon. So it is by content that tokenizers are compared. Ids that
only the given tokenizer has are no fault (tokens were added, and the embedding has rows for them), nor is how it puts
texts between [CLS] and [SEP], which rows are always. Where a model has no tokenizer beside it, its vocabulary's size is
all there is to compare.
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from rotary_foundry.data.rows import fingerprint
from rotary_foundry.data.special_tokens import read_tokenizer
from rotary_foundry.utils.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CUTTING = {"normalizer": "changes texts", "pre_tokenizer": "splits texts into words", "model": "cuts words into tokens"}


def check_same_tokenizer(given: Path, own: Path, remedy: str) -> None:
    """Refuse a tokenizer (a folder) that is not the model's own, if there is one (in another folder).

    Args:
        remedy: what the error tells to do.

    Raises:
        DataError: naming the first id or the first step in which they differ.
    """
    if not (own / "tokenizer.json").is_file() or fingerprint(given) == fingerprint(own):
        return
    ours, theirs = read_tokenizer(given), read_tokenizer(own)
    ids = theirs.get_vocab(with_added_tokens=True)
    for token, token_id in sorted(ids.items(), key=lambda item: item[1]):
        found = ours.id_to_token(token_id)
        if found != token:
            what = "nothing" if found is None else repr(found)
            raise _other(given, f"id {token_id} is {what}, and {token!r} to the model", remedy)
    steps, model_steps = json.loads(ours.to_str()), json.loads(theirs.to_str())
    for step, does in CUTTING.items():
        if steps[step] != model_steps[step]:
            raise _other(given, f"its {step}, which {does}, is another", remedy)


def check_ids(tokenizer: "PreTrainedTokenizerBase", model: str | Path, vocab_size: int) -> None:
    """Refuse a tokenizer with ids that the model has no embeddings for.

    Raises:
        DataError: naming its largest id.
    """
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocab_size:
        raise DataError(
            f"{tokenizer.name_or_path}: the tokenizer has ids to {largest:,}, and {model} a vocabulary of "
            f"{vocab_size:,}: this is not its tokenizer"
        )


def keep_tokenizer(shards: Path, run: Path, begun: bool) -> None:
    """Copy the tokenizer of a run's shards to the run, which means the same by its ids to the end.

    So a checkpoint is exported and evaluated wherever its run's folder is, and shards may be gone or prepared anew.

    Args:
        shards: the folder of their tokenizer.
        run: the folder for it.
        begun: the run has a checkpoint, so shards of another tokenizer are refused.

    Raises:
        DataError: they are of another.
    """
    if begun:
        remedy = f"prepare the data again with tokenizer.path={run}, or give another run_name"
        check_same_tokenizer(shards, run, remedy)
    shutil.copytree(shards, run, dirs_exist_ok=True)


def _other(given: Path, difference: str, remedy: str) -> DataError:
    return DataError(f"{given}: not the model's tokenizer: {difference}; {remedy}")
