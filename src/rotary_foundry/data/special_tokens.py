"""Read a tokenizer and the ids of its special tokens, which are identified by role and never by spelling.

For example, RoBERTa's mask token is <mask> and BERT's is [MASK]. Rows need a cls_token and a sep_token, or a bos_token
and an eos_token, as a decoder's tokenizer has. The family and the objective may need other roles. The roles are in
tokenizer_config.json, which transformers saves with every tokenizer, and the ids are in tokenizer.json. Both are read
without transformers, which takes seconds to import.

A text may spell a special token, as documentation of a tokenizer does. It stays text, in rows and in evaluations
(`as_text`). Otherwise a run would train on masks and document ends that are not meant as such.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer

from rotary_foundry.data.rows import FRAME, OF_DECODERS
from rotary_foundry.utils.errors import DataError
from rotary_foundry.utils.json_text import read_object
from rotary_foundry.utils.panics import panics_as_errors
from rotary_foundry.utils.wording import one_line

ROLES_FILE = "tokenizer_config.json"
OF_ENCODERS = (*FRAME.before, *FRAME.after, "pad_token", "mask_token")  # used by rows, by the export, and by masking
ROLES = ("unk_token", *OF_ENCODERS)  # a byte-level tokenizer knows every text and may do without the first
VOCABULARY_MULTIPLE = 64  # a model's vocabulary size is a multiple of it, for the sake of matrix units
RARE = "\U00010348"  # a Gothic letter, which is in hardly any vocabulary
UNWRITTEN = "\U0010ffff"  # not a character


def padded(vocab_size: int) -> int:
    """Return the vocabulary size of a model for a tokenizer of `vocab_size` ids."""
    return -(-vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def read_tokenizer(directory: str | Path) -> Tokenizer:
    """Read a directory's `tokenizer.json`.

    Raises:
        DataError: the file is missing or not a tokenizer, two tokens have the same id, or the tokenizer draws at
            random. Only a BPE's dropout does so: tokenizer.json has no key for the sampling of a Unigram model. Also
            as `check_any_text`.
    """
    path = Path(directory) / "tokenizer.json"
    if not path.is_file():
        raise DataError(f"{path}: no such file; a Hugging Face fast tokenizer has one")
    try:
        with panics_as_errors():
            tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise DataError(f"{path}: cannot be read as a tokenizer: {one_line(error)}") from error
    if dropout := getattr(tokenizer.model, "dropout", None):
        raise DataError(f"{path}: model.dropout is {dropout}, so a text has other tokens each time; set it to null")
    ids = tokenizer.get_vocab(with_added_tokens=False).values()
    if len(set(ids)) < len(ids):  # the library reads this, but cannot read what it then saves
        raise DataError(f"{path}: model.vocab: two tokens have the same id; give each its own")
    check_any_text(tokenizer, path)
    return tokenizer


def check_any_text(tokenizer: Tokenizer, where: str | Path) -> None:
    """Refuse a tokenizer that raises an error for some texts, before it meets one in the data.

    Raises:
        DataError: its model has no token for unknown words, as some models of single letters
            (huggingface/tokenizers#351), or it puts special tokens around texts that its vocabulary does not have.
    """
    try:
        with panics_as_errors():
            one = tokenizer.encode(RARE, add_special_tokens=False)
    except Exception as error:  # as above
        raise DataError(
            f"{where}: expected a tokenizer that encodes any text, but a word that it does not know is an error "
            f"({error}); add [UNK] to its vocabulary, name it as unk_token of its model, and save it again"
        ) from error
    if (processor := tokenizer.post_processor) is None:
        return
    try:
        with panics_as_errors():
            processor.process(one), processor.process(one, one)
    except Exception as error:  # as above
        raise DataError(
            f"{where}: post_processor: expected one that puts special tokens around a text and around a pair, but it "
            f"raises an error ({error}); list under special_tokens what single and pair name"
        ) from error


def as_text(tokenizer: Tokenizer, roles: Iterable[str] = (), kept: bool = False) -> Tokenizer:
    """Return a tokenizer with the same ids that treats special tokens spelled in a text as text.

    It is not enough that the search for added tokens omits them (`encode_special_tokens`). A Unigram model has them as
    pieces, WordLevel and WordPiece may have them as words, and merges of a BPE may spell one. So they get names that no
    text has, and such merges are removed. The tokenizer does not truncate or pad.

    Args:
        tokenizer: not changed.
        roles: tokens that have a role; they are special even if tokenizer.json does not mark them as special.
        kept: whether a special token whose name follows UNWRITTEN is one.
    """
    content = json.loads(tokenizer.to_str())
    model, special = content["model"], _special(content, roles)

    def renamed(token: str) -> str:
        return UNWRITTEN + token if token in special else token

    vocabulary = model["vocab"]
    known = set(vocabulary if isinstance(vocabulary, dict) else (piece for piece, _ in vocabulary))
    if isinstance(vocabulary, dict):
        model["vocab"] = {renamed(token): id_ for token, id_ in vocabulary.items()}
    else:
        model["vocab"] = [[renamed(piece), score] for piece, score in vocabulary]
    if model.get("unk_token"):
        model["unk_token"] = renamed(model["unk_token"])
    if "merges" in model:
        prefix = model.get("continuing_subword_prefix") or ""
        merges = [(first, second, first + second.removeprefix(prefix)) for first, second in model["merges"]]
        model["merges"] = [merge[:2] for merge in merges if special.isdisjoint(merge)]
    if kept:
        content["added_tokens"] = [
            token
            | ({"content": UNWRITTEN + token["content"], "normalized": False} if token["content"] in special else {})
            for token in content["added_tokens"]
        ]
    else:
        content["added_tokens"] = [
            token | {"special": token["content"] in special}
            for token in content["added_tokens"]
            if token["content"] not in special & known
        ]
    text = Tokenizer.from_str(json.dumps(content))
    text.no_truncation()
    text.no_padding()
    text.encode_special_tokens = not kept
    return text


def spelled(tokenizer: Tokenizer, roles: Iterable[str] = ()) -> re.Pattern:
    """Return a pattern that finds special tokens spelled in a text; `roles` as in `as_text`."""
    special = sorted(_special(json.loads(tokenizer.to_str()), roles), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, special)) or r"(?!)")


def _special(content: dict, roles: Iterable[str]) -> set[str]:
    return {token["content"] for token in content["added_tokens"] if token["special"]} | set(roles)


def special_ids(directory: str | Path, tokenizer: Tokenizer) -> dict[str, int]:
    """Return the ids of the special tokens of the `tokenizer` in `directory`, by role, such as "mask_token".

    The result has "bos_token" only if there is no "cls_token", and "eos_token" only if there is no "sep_token".

    Raises:
        DataError: a role that rows need is missing, or the token of any role is not in the tokenizer.
    """
    path = Path(directory) / ROLES_FILE
    config = read_object(path)
    roles = [role if config.get(role) else OF_DECODERS.get(role, role) for role in ROLES]
    spellings = {role: _spelling(config.get(role)) for role in roles}
    for role, token in spellings.items():
        if not isinstance(token, str | None):
            raise DataError(f"{path}: {role}: expected a token, got {token!r}")
    ids = {role: tokenizer.token_to_id(token) for role, token in spellings.items() if token is not None}
    remedy = "prepare the data again with `python data_prep CONFIG`"
    for role, other in OF_DECODERS.items():
        if not {role, other} & ids.keys():
            raise DataError(f"{path}: neither {role} nor {other} is given; {remedy}")
    for role, token_id in ids.items():
        if token_id is None and role != "unk_token":
            raise DataError(f"{path}: {role} is {spellings[role]}, which tokenizer.json does not have; {remedy}")
    return {role: token_id for role, token_id in ids.items() if token_id is not None}


def rewrite_config(directory: Path, **settings: object) -> None:
    """Rewrite a tokenizer_config.json, if there is one, so that transformers 4 and 5 both read it.

    Version 5 saves a class name and a list that version 4 cannot read. Both versions can read version 4's names.

    Args:
        settings: values that replace those in the file.
    """
    path = directory / ROLES_FILE
    if not path.is_file():
        return
    config = read_object(path) | settings
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _spelling(token: object) -> object:
    """Return a token's text; transformers saves either the text or a mapping with options."""
    return token.get("content") if isinstance(token, dict) else token
