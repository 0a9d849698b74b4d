"""Open a directory's fast tokenizer with transformers, as tokenizer.json describes it, without running code from there.

For some classes, transformers 5 builds the tokenizer again from the vocabulary. A BertTokenizer then lower-cases unless
tokenizer_config.json says otherwise, and the third token of an XLMRobertaTokenizer is its unknown token, whatever
tokenizer.json says. transformers 4, and the rows that are prepared here, follow tokenizer.json. So the steps of
tokenizer.json are restored, and the class decides only what it lacks: roles, inputs and the chat template.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rotary_foundry.data.special_tokens import ROLES_FILE, as_text, read_tokenizer
from rotary_foundry.utils.errors import DataError
from rotary_foundry.utils.wording import not_opened

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

STEPS = ("normalizer", "pre_tokenizer", "model", "decoder")
CHECKED = (  # settings that transformers does not check
    ("model_max_length", lambda value: type(value) in (int, float) and value > 0, "a number of tokens"),
    ("chat_template", lambda value: value is None or all(isinstance(one, str) for one in _each(value)), "Jinja"),
)


def _each(template: object) -> Iterable[object]:
    """Return the chat templates of a tokenizer, which may have several with names."""
    return template.values() if isinstance(template, dict) else [template]


def open_fast(path: str | Path) -> "PreTrainedTokenizerFast":
    """Open the Hugging Face fast tokenizer of a directory, without a network.

    Raises:
        DataError: there is no such directory, or the tokenizer cannot be read, needs code of its own, draws at random,
            is not a fast tokenizer, or has a setting of a wrong type.
    """
    from transformers import AutoTokenizer  # importing it takes seconds

    if not Path(path).is_dir():  # transformers would look it up on the hub, for a minute if there is no network
        raise DataError(
            f"{path}: no such folder; expected one with a tokenizer; a tokenizer of the hub has to be downloaded"
        )
    own = read_tokenizer(path) if (Path(path) / "tokenizer.json").is_file() else None
    try:
        fast = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers and its parts may raise any class
        raise DataError(f"{path}: transformers cannot open this tokenizer: {not_opened(error)}") from error
    if not fast.is_fast:
        raise DataError(f"{path}: expected a fast tokenizer, with a tokenizer.json, got {type(fast).__name__}")
    for key, is_right, expected in CHECKED:
        if not is_right(value := getattr(fast, key)):
            raise DataError(f"{path}: {ROLES_FILE}: {key}: expected {expected}, got {value!r:.60}")
    if own is not None:
        backend = fast.backend_tokenizer
        for step in STEPS:
            setattr(backend, step, getattr(own, step))
        if own.post_processor is not None:
            backend.post_processor = own.post_processor
    return fast


def special_tokens_as_text(tokenizer: "PreTrainedTokenizerBase") -> Callable[[], None]:
    """Make a tokenizer, which another library calls, treat special tokens spelled in a text as text, as in `as_text`.

    Of a tokenizer that is not a fast one, only the search for special tokens is switched off.

    Returns:
        A function that undoes it, to be called before the tokenizer is saved; tokens with a role stay marked special.
    """
    backend, splits = getattr(tokenizer, "backend_tokenizer", None), tokenizer.split_special_tokens
    model = getattr(backend, "model", None)
    tokenizer.split_special_tokens = True
    if backend is not None:
        backend.model = as_text(backend, tokenizer.all_special_tokens).model
        for token in tokenizer.added_tokens_decoder.values():
            if token.content in tokenizer.all_special_tokens and not token.special:
                token.special = True
                backend.add_special_tokens([token])

    def undo() -> None:
        tokenizer.split_special_tokens = splits
        if backend is not None:
            backend.model = model

    return undo
