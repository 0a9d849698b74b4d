"""Whether shards were made with the tokenizer of the model that is to go on from them.

A model of the same vocabulary's size takes any ids, and its embeddings of them mean nothing: the loss starts where a
model of random weights starts, and training hides that soon. So it is by content that tokenizers are compared. Ids that
only the shards' tokenizer has are no fault (tokens were added, and the embedding has rows for them), nor is how it puts
texts between [CLS] and [SEP], which rows are always.
"""

import json
import shutil
from pathlib import Path

from tokenizers import Tokenizer

from encoder_foundry.data.rows import fingerprint
from encoder_foundry.errors import DataError

CUTTING = {"normalizer": "changes texts", "pre_tokenizer": "splits texts into words", "model": "cuts words into tokens"}


def check_same_tokenizer(shards: Path, model: Path) -> None:
    """Refuse a tokenizer of shards (a folder) that is not the model's (another).

    Raises:
        DataError: naming the first id or the first step in which they differ.
    """
    if fingerprint(shards) == fingerprint(model):
        return
    ours, theirs = _open(shards), _open(model)
    ids = theirs.get_vocab(with_added_tokens=True)
    for token, token_id in sorted(ids.items(), key=lambda item: item[1]):
        found = ours.id_to_token(token_id)
        if found != token:
            what = "nothing" if found is None else repr(found)
            raise _other(shards, model, f"id {token_id} is {what}, and {token!r} to the model")
    steps, model_steps = json.loads(ours.to_str()), json.loads(theirs.to_str())
    for step, does in CUTTING.items():
        if steps[step] != model_steps[step]:
            raise _other(shards, model, f"its {step}, which {does}, is another")


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
        check_same_tokenizer(shards, run)
    else:
        shutil.copytree(shards, run, dirs_exist_ok=True)


def _open(folder: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise DataError(f"{folder}/tokenizer.json: cannot be read as a tokenizer: {error}") from error


def _other(shards: Path, model: Path, difference: str) -> DataError:
    return DataError(
        f"{shards}: not the tokenizer of the model ({model}): {difference}; "
        f"prepare the data again with tokenizer.path={model}"
    )
