"""Read and write a decoder's `generation_config.json`: the tokens that end an answer, and its author's settings.

- `generation_config.json` belongs to the tokenizer, because its ids are the tokenizer's. Preparation copies it with the
  tokenizer, the run keeps it, and the export writes it. So settings such as a temperature are passed from an imported
  model to the export of its further training.
- Several tokens may end an answer: the end of a document, those of the imported model, and the special token that the
  chat template puts after an assistant's turn. transformers and vLLM stop at any id of a list.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rotary_foundry.runs.run_folder import GENERATION
from rotary_foundry.utils.errors import DataError
from rotary_foundry.utils.json_text import read_object

STOPS = "eos_token_id"
ROLES = ("bos_token_id", "pad_token_id")
CHAT = [{"role": "user", "content": "Question?"}, {"role": "assistant", "content": "Answer."}]


def read_generation(directory: Path) -> dict[str, Any]:
    """Read a directory's generation_config.json; empty if there is none.

    Raises:
        DataError: the file is damaged, or its eos_token_id is neither an id nor a list of ids.
    """
    path = directory / GENERATION
    if not path.is_file():
        return {}
    settings = read_object(path)
    check_stops(settings, path)
    return settings


def check_stops(settings: Mapping[str, Any], where: Path) -> None:
    """Raise a DataError that names the file if eos_token_id is neither an id nor a list of ids."""
    if not all(type(token) is int and token >= 0 for token in _listed(settings.get(STOPS))):
        raise DataError(f"{where}: {STOPS}: expected an id or a list of ids, found {settings[STOPS]!r}")


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the first special token that the chat template puts after an assistant's turn; None if it puts none."""
    if not tokenizer.chat_template:
        return None
    try:
        text = tokenizer.apply_chat_template(CHAT, tokenize=False)
    except Exception:  # a template may raise anything, for example that it expects tools
        return None
    _, answer, after = text.rpartition(CHAT[-1]["content"])
    added = tokenizer.added_tokens_decoder
    ids = tokenizer(after, add_special_tokens=False)["input_ids"] if answer else []
    return next((token for token in ids if token in added and added[token].special), None)


def stop_ids(tokenizer: PreTrainedTokenizerBase, *given: int | list[int] | None) -> list[int]:
    """Return the ids of all tokens that end an answer: those given, in order, then the chat template's end of turn."""
    return list(dict.fromkeys(token for one in (*given, end_of_turn(tokenizer)) for token in _listed(one)))


def generation_settings(
    tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, brought: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the content of generation_config.json.

    Args:
        config: the model's configuration, with the ids of the special tokens and the vocabulary size.
        brought: the settings that came with the tokenizer or the imported model.

    Raises:
        DataError: the model has no embedding for one of the ids that end an answer.
    """
    stops = stop_ids(tokenizer, config.eos_token_id, brought.get(STOPS))
    if stops and max(stops) >= config.vocab_size:
        raise DataError(
            f"{GENERATION}: {STOPS}: {max(stops):,}, but the model has a vocabulary of {config.vocab_size:,}; correct "
            f"the file beside {tokenizer.name_or_path}"
        )
    ids = {role: id for role in ROLES if (id := getattr(config, role)) is not None}
    kept = {key: value for key, value in brought.items() if key != "transformers_version"}
    return kept | ids | ({STOPS: stops if len(stops) > 1 else stops[0]} if stops else {})


def _listed(given: Any) -> list:
    return [] if given is None else given if isinstance(given, list) else [given]
