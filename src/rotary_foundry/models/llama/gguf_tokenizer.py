"""Build a tokenizer from the vocabulary in a GGUF file, as files that transformers 4 and 5 and `tokenizers` read.

- `gpt2` is byte-level BPE with merges. The file does not say how to split a text into words; it has only the name of
  llama.cpp's rule for that. Three names are supported. Others are refused, because another rule gives other ids for
  the same text. transformers' own reader uses GPT-2's rule for names that it does not know. `smollm` is one of these,
  although its rule also splits numbers into digits.
- `llama` is SentencePiece's BPE, which has scores. transformers derives the merges from them.
- Tokens of type control are special tokens. Those of type user-defined are also found before a text is split.
- The file's chat template is kept, and so are the tokens that end an answer: end of document, of turn, of message.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gguf import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.tokenization_utils_base import generate_merges

from rotary_foundry.data.special_tokens import ROLES_FILE
from rotary_foundry.runs.run_folder import GENERATION
from rotary_foundry.utils.errors import DataError
from rotary_foundry.utils.wording import one_line

BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"
LLAMA_3, SPACE = "llama-bpe", "▁"
ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
NEEDED = ("bos_token", "eos_token")  # our rows need them
ENDS = ("eos", "eot", "eom")  # end of a document, a turn, a message; llama.cpp stops at each
PREFIX = "tokenizer.ggml."
TEMPLATE = "tokenizer.chat_template"

PRE_TOKENIZERS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    LLAMA_3: lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[LLAMA_3]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}


def tokenizer_files(metadata: Mapping[str, Any], longest: int) -> dict[str, str]:
    """Return the content of tokenizer.json, tokenizer_config.json and generation_config.json, by name.

    Args:
        metadata: the keys of the file with their values.
        longest: the model's context length in tokens.

    Raises:
        DataError: the tokenizer is of a kind that is not supported, or is incomplete; names the key, not the file.
    """
    keys = {key.removeprefix(PREFIX): value for key, value in metadata.items() if key.startswith(PREFIX)}
    try:
        tokens = _tokens(keys)
        roles = dict(_roles(keys, tokens))
        tokenizer = _tokenizer(keys, tokens, roles)
        _add_special_tokens(tokenizer, keys, tokens, roles)
        ends = [_id(keys, f"{name}_token_id", tokens) for name in ENDS if f"{name}_token_id" in keys]
    except DataError:
        raise
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise DataError(f"{PREFIX}tokens: no tokenizer can be made of them: {one_line(error)}") from None
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": longest,
        "clean_up_tokenization_spaces": False,
        **roles,
    }
    if (template := metadata.get(TEMPLATE)) is not None:
        if not isinstance(template, str):
            raise DataError(f"{TEMPLATE}: expected a text, found {template!r:.60}")
        settings["chat_template"] = template
    return {
        "tokenizer.json": tokenizer.to_str(),
        ROLES_FILE: json.dumps(settings),
        GENERATION: json.dumps({"eos_token_id": list(dict.fromkeys(ends))}),
    }


def _needed(keys: Mapping[str, Any], key: str) -> Any:
    if key not in keys:
        raise DataError(f"{PREFIX}{key}: missing")
    return keys[key]


def _tokens(keys: Mapping[str, Any]) -> list[str]:
    tokens = _needed(keys, "tokens")
    places = {token: index for index, token in enumerate(tokens)}
    if twice := next((token for index, token in enumerate(tokens) if places[token] != index), None):
        raise DataError(f"{PREFIX}tokens: expected different tokens, found {twice!r} twice")
    return tokens


def _roles(keys: Mapping[str, Any], tokens: list[str]) -> Iterator[tuple[str, str]]:
    for role, name in ROLES.items():
        key = f"{name}_token_id"
        if role not in NEEDED and key not in keys:
            continue
        yield role, tokens[_id(keys, key, tokens)]


def _id(keys: Mapping[str, Any], key: str, tokens: list[str]) -> int:
    token_id = _needed(keys, key)
    if not isinstance(token_id, int) or not 0 <= token_id < len(tokens):
        raise DataError(f"{PREFIX}{key}: expected an id below {len(tokens):,}, found {token_id!r}")
    return token_id


def _tokenizer(keys: Mapping[str, Any], tokens: list[str], roles: Mapping[str, str]) -> Tokenizer:
    kind, vocabulary = _needed(keys, "model"), {token: index for index, token in enumerate(tokens)}
    if kind == BYTE_LEVEL:
        return _byte_level(keys, vocabulary, roles)
    if kind == SENTENCEPIECE:
        return _sentencepiece(keys, vocabulary, roles)
    raise DataError(f"{PREFIX}model: expected {BYTE_LEVEL} or {SENTENCEPIECE}, found {kind!r}")


def _byte_level(keys: Mapping[str, Any], vocabulary: dict[str, int], roles: Mapping[str, str]) -> Tokenizer:
    rule = _needed(keys, "pre")
    if rule not in PRE_TOKENIZERS:
        raise DataError(f"{PREFIX}pre: expected {', '.join(PRE_TOKENIZERS)}, found {rule!r}")
    merges = [tuple(merge.split(" ")) for merge in _needed(keys, "merges")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=rule == LLAMA_3))
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[rule]()
    tokenizer.decoder = decoders.ByteLevel()
    _add_ends(tokenizer, keys, roles, add_bos=rule == LLAMA_3)
    return tokenizer


def _sentencepiece(keys: Mapping[str, Any], vocabulary: dict[str, int], roles: Mapping[str, str]) -> Tokenizer:
    """Build the same tokenizer as Llama 2's own tokenizer.json."""
    for key in ("precompiled_charsmap", "remove_extra_whitespaces"):
        if keys.get(key):
            raise DataError(f"{PREFIX}{key}: expected no change of texts before they are split, found one")
    merges = generate_merges(vocabulary, dict(zip(vocabulary, _needed(keys, "scores"), strict=True)))
    unknown = roles.get("unk_token")
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    spaces, steps = [normalizers.Replace(" ", SPACE)], [decoders.Replace(SPACE, " "), decoders.ByteFallback()]
    steps.append(decoders.Fuse())
    if keys.get("add_space_prefix", True):
        spaces.insert(0, normalizers.Prepend(SPACE))
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer, tokenizer.decoder = normalizers.Sequence(spaces), decoders.Sequence(steps)
    _add_ends(tokenizer, keys, roles, add_bos=True)
    return tokenizer


def _add_ends(tokenizer: Tokenizer, keys: Mapping[str, Any], roles: Mapping[str, str], add_bos: bool) -> None:
    """Make the tokenizer add bos and eos to texts as the file says; `add_bos` is llama.cpp's default."""
    before = [roles["bos_token"]] if keys.get("add_bos_token", add_bos) else []
    after = [roles["eos_token"]] if keys.get("add_eos_token", False) else []
    if before or after:
        second = [f"{token}:1" for token in (*before, "$B", *after)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after],
            pair=[*before, "$A", *after, *second],
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in {*before, *after}],
        )


def _add_special_tokens(
    tokenizer: Tokenizer, keys: Mapping[str, Any], tokens: list[str], roles: Mapping[str, str]
) -> None:
    kinds = _needed(keys, "token_type")
    if len(kinds) != len(tokens):
        raise DataError(f"{PREFIX}token_type: expected {len(tokens):,} types, one per token, found {len(kinds):,}")
    special = {
        *roles.values(),
        *(token for token, kind in zip(tokens, kinds, strict=True) if kind == TokenType.CONTROL),
    }
    added = [token for token, kind in zip(tokens, kinds, strict=True) if kind == TokenType.USER_DEFINED]
    tokenizer.add_special_tokens([token for token in tokens if token in special])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added if token not in special])
