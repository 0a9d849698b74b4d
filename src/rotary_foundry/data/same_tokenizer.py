"""Check that a tokenizer is the model's own: the tokenizer of shards for further training, or one given by the user.

A model with the same vocabulary size accepts any ids, but its embeddings are meaningless for another tokenizer. The
loss then starts like that of random weights, and training soon hides the mistake. So tokenizers are compared by
content. Two differences are allowed: ids that only the given tokenizer has (added tokens, for which the embedding has
rows), and how it adds [CLS] and [SEP], because rows always have them. If a model comes without a tokenizer, only the
vocabulary size can be compared.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rotary_foundry.data.rows import fingerprint
from rotary_foundry.data.special_tokens import check_any_text, read_tokenizer
from rotary_foundry.utils.errors import DataError
from rotary_foundry.utils.object_store import copy_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CUTTING = {"normalizer": "changes texts", "pre_tokenizer": "splits texts into words", "model": "cuts words into tokens"}


def check_same_tokenizer(given: Path, own: Path, remedy: str) -> None:
    """Refuse a tokenizer (a folder) that differs from the model's own (another folder), if the model has one.

    Args:
        remedy: what the error tells the user to do.

    Raises:
        DataError: they differ; the message names the first id or the first step that does.
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
            raise _other(given, f"its {step}, which {does}, differs", remedy)


def check_ids(tokenizer: "PreTrainedTokenizerBase", model: str | Path, vocab_size: int) -> None:
    """Refuse a tokenizer with ids for which the model has no embeddings, or that cannot encode every text.

    Raises:
        DataError: an id is too large, and the message names the largest; or as `check_any_text`.
    """
    if tokenizer.is_fast:
        check_any_text(tokenizer.backend_tokenizer, tokenizer.name_or_path)
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocab_size:
        raise DataError(
            f"{tokenizer.name_or_path}: the tokenizer has ids up to {largest:,}, but {model} has a vocabulary of "
            f"{vocab_size:,}; give the model's own tokenizer"
        )


def keep_tokenizer(shards: Path, run: Path, begun: bool) -> None:
    """Copy the tokenizer of a run's shards to the run's folder, so that ids keep their meaning to the end of the run.

    Then a checkpoint can be exported and evaluated with only the folder of its run, even if the shards are deleted or
    changed.

    Args:
        shards: the folder of the shards' tokenizer.
        run: the folder for the copy.
        begun: whether the run has a checkpoint; if so, shards of another tokenizer are refused.

    Raises:
        DataError: the shards have another tokenizer than the run.
    """
    if begun:
        remedy = f"prepare the data again with tokenizer.path={run}, or give another run_name"
        check_same_tokenizer(shards, run, remedy)
    copy_folder(shards, run)


def _other(given: Path, difference: str, remedy: str) -> DataError:
    return DataError(f"{given}: not the model's tokenizer: {difference}; {remedy}")
