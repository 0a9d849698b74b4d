"""The tokenizer of a GGUF file gives the ids of the model's own; a rule that is not known is refused by its name."""

import pytest
from gguf import TokenType
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

from rotary_foundry.data.special_tokens import special_ids
from rotary_foundry.interop.importing import import_model
from rotary_foundry.models.llama.gguf_tokenizer import tokenizer_files
from rotary_foundry.utils.errors import ConfigurationError, DataError
from tests.interop.gguf_files import CHAT, SPECIAL, TEXT, VOCABULARY, settings_of, tensors_of, write_gguf
from tests.models.llama.peers import our_network
from tests.permuted import permuted

TEXTS = [
    TEXT,
    "",
    "the cat",
    " the  mats\n\n\tcats' 19841984  ",
    "THE CAT'S größer – 猫 🐈",
    "1984 cats<|im_end|>the mat",
]
LENGTH = 256
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, _, BYTE = map(int, TokenType)


def built(**changes) -> Tokenizer:
    """Return the tokenizer of the vocabulary with other keys; `...` leaves one out."""
    metadata = VOCABULARY | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    metadata = {key: value for key, value in metadata.items() if value is not ...}
    return Tokenizer.from_str(tokenizer_files(metadata, LENGTH)["tokenizer.json"])


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path, ours = tmp_path_factory.mktemp("gguf"), our_network(vocab_size=320, num_hidden_layers=1)
    settings = settings_of(ours) | VOCABULARY | {"tokenizer.ggml.padding_token_id": 2}
    import_model(write_gguf(path / "model.gguf", tensors_of(ours), settings), path / "out")
    return path / "out"


def test_a_directory_has_the_files_tokens_roles_and_template(directory):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert [tokenizer.convert_ids_to_tokens(id) for id in range(3)] == SPECIAL
    assert special_ids(directory, tokenizer.backend_tokenizer) == {
        "unk_token": 0, "bos_token": 1, "eos_token": 2, "pad_token": 2
    }  # fmt: skip
    assert tokenizer.model_max_length == LENGTH
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == ids(built(), text)
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.decode(tokenizer("cat<|im_end|>")["input_ids"], skip_special_tokens=True) == "cat"
    chat = [{"role": "user", "content": "the cat"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<|im_start|>the cat<|im_end|>"


def test_a_template_stays_where_transformers_5_saves_it(directory, tmp_path):
    AutoTokenizer.from_pretrained(directory).save_pretrained(tmp_path / "theirs")
    assert (tmp_path / "theirs/chat_template.jinja").read_text() == CHAT
    import_model(directory, tmp_path / "out", tokenizer=tmp_path / "theirs")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == CHAT


RULES = {  # as in the tokenizer.json of GPT-2, SmolLM2 and Llama 3
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "llama-bpe": [
        pre_tokenizers.Split(
            Regex(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                r"|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
            behavior="isolated",
        ),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
}
DIGITS = {"gpt-2": ["Ġ1984"], "smollm": ["Ġ", "1", "9", "8", "4"], "llama-bpe": ["Ġ", "198", "4"]}


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_gives_the_ids_of_the_models_own_tokenizer(rule):
    tokens, merges = VOCABULARY["tokenizer.ggml.tokens"], VOCABULARY["tokenizer.ggml.merges"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    own = Tokenizer(models.BPE(vocabulary, [tuple(merge.split()) for merge in merges]))
    own.pre_tokenizer = pre_tokenizers.Sequence(RULES[rule])
    own.add_special_tokens(SPECIAL)
    found = built(pre=rule)
    for text in TEXTS:
        assert ids(found, text) == ids(own, text), text
    assert [word for word, _ in found.pre_tokenizer.pre_tokenize_str(" 1984")] == DIGITS[rule]


def test_llama_3_takes_a_word_of_its_vocabulary_whole_and_begins_with_bos():
    tokens = [*VOCABULARY["tokenizer.ggml.tokens"], "Ġunmerged"]
    changes = {"tokens": tokens, "token_type": [*VOCABULARY["tokenizer.ggml.token_type"], NORMAL]}
    found = built(pre="llama-bpe", **changes).encode(" unmerged")
    assert found.tokens == [SPECIAL[1], "Ġunmerged"]
    assert built(pre="llama-bpe", add_bos_token=False, **changes).encode(" unmerged").tokens == ["Ġunmerged"]
    assert "Ġunmerged" not in built(pre="smollm", **changes).encode(" unmerged").tokens


def test_bos_and_eos_are_added_as_the_file_says():
    found = built(add_bos_token=True, add_eos_token=True)
    bos, the, eos = 1, ids(built(), "the"), 2
    assert found.encode("the").ids == [bos, *the, eos]
    assert found.encode("the", "the").ids == [bos, *the, eos, bos, *the, eos]
    assert built().encode("the").ids == the


def test_tokens_of_users_are_found_before_a_text_is_split_and_are_not_special():
    types = [*VOCABULARY["tokenizer.ggml.token_type"], USER_DEFINED]
    found = built(tokens=[*VOCABULARY["tokenizer.ggml.tokens"], "  <think>"], token_type=types)
    assert "  <think>" in found.encode("the  <think> cat").tokens
    assert found.decode(found.encode("the  <think> cat<|im_end|>").ids) == "the  <think> cat"


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PIECES = ["▁", *"abcdefghijklmnopqrstuvwxyz'.", "th", "▁th", "▁the", "he", "at", "▁c", "▁cat", "▁▁"]
SCORES = [-100.0] * 29 + [-1.0, -2.0, -5.0, -3.0, -4.0, -6.0, -7.0, -8.0]  # of PIECES; a higher one is merged first
SENTENCEPIECE = {
    "model": "llama",
    "tokens": ["<unk>", "<s>", "</s>", *BYTES, *PIECES],
    "scores": [0.0] * 259 + SCORES,
    "token_type": [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(PIECES)],
    "merges": ...,
    "pre": ...,
}


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("the cat", ["▁the", "▁cat"]),
        ("  the", ["▁▁", "▁the"]),
        ("hthat", ["▁", "h", "th", "at"]),  # "th" goes before "he" and "at"
        ("é猫", ["▁", "<0xC3>", "<0xA9>", "<0xE7>", "<0x8C>", "<0xAB>"]),
        ("cat</s>the", ["▁cat", "</s>", "▁the"]),
    ],
)
def test_sentencepiece_merges_the_piece_with_the_highest_score_first(text, tokens):
    found = built(**SENTENCEPIECE)
    assert found.encode(text, add_special_tokens=False).tokens == tokens
    assert found.encode(text).tokens == ["<s>", *tokens]
    if "</s>" not in text:
        assert found.decode(found.encode(text).ids) == text
    without = built(**SENTENCEPIECE, add_space_prefix=False, add_bos_token=False)
    assert without.encode("atat").tokens == ["at", "at"]
    assert without.decode(without.encode(text).ids, skip_special_tokens=False) == text


REFUSED = {
    "model": ("bert", "tokenizer.ggml.model: expected gpt2 or llama, found 'bert'"),
    "pre": ("qwen2", "tokenizer.ggml.pre: expected gpt-2, smollm, llama-bpe, found 'qwen2'"),
    "tokens": (["a", "b", "a"], "tokenizer.ggml.tokens: expected different tokens, found 'a' twice"),
    "token_type": ([NORMAL], "tokenizer.ggml.token_type: expected 3"),
    "merges": (["x y"], "tokenizer.ggml.tokens: no tokenizer can be made of them: "),
    "bos_token_id": (..., "tokenizer.ggml.bos_token_id: missing"),
    "eos_token_id": (999, "tokenizer.ggml.eos_token_id: expected an id below 3"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_a_vocabulary_that_cannot_be_used_is_refused_by_key(key):
    value, says = REFUSED[key]
    with pytest.raises(DataError) as refused:
        built(**{key: value})
    assert str(refused.value).startswith(says)
    if key != "model":
        with pytest.raises(DataError, match=f"tokenizer.ggml.{key}: "):
            built(**{key: ...})


def test_a_chat_template_that_is_no_text_is_refused():
    with pytest.raises(DataError, match=r"^tokenizer\.chat_template: expected a text, found \['a'\]"):
        tokenizer_files(VOCABULARY | {"tokenizer.chat_template": ["a"]}, 8)


@pytest.mark.parametrize("key", ["precompiled_charsmap", "remove_extra_whitespaces"])
def test_sentencepiece_that_changes_texts_is_refused_by_key(key):
    with pytest.raises(DataError, match=f"tokenizer.ggml.{key}: expected no change of texts"):
        built(**SENTENCEPIECE, **{key: True})


def test_a_tokenizer_that_cannot_be_made_may_be_given(directory, tmp_path):
    ours = our_network(vocab_size=320, num_hidden_layers=1)
    settings = settings_of(ours) | VOCABULARY
    path = write_gguf(tmp_path / "model.gguf", tensors_of(ours), settings | {"tokenizer.ggml.pre": "qwen2"})
    with pytest.raises(ConfigurationError) as refused:
        import_model(path, tmp_path / "out")
    assert str(refused.value) == (f"{path}: {REFUSED['pre'][1]}; give --tokenizer, the folder of the model's tokenizer")
    import_model(path, tmp_path / "out", tokenizer=directory)
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (directory / "tokenizer.json").read_bytes()
    write_gguf(path, tensors_of(ours), settings)
    other = permuted(directory, tmp_path / "other")
    with pytest.raises(
        DataError, match=f"{other}: not the model's tokenizer: id .*; leave out --tokenizer: {path} has"
    ):
        import_model(path, tmp_path / "again", tokenizer=other)
