"""The tokenizer that is trained here, and what is asked of one that is brought along."""

import json
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoTokenizer, ModernBertConfig, ModernBertForMaskedLM, pipeline

from encoder_foundry.data.rows import fingerprint
from encoder_foundry.errors import DataError
from encoder_foundry.preparation.tokenizer import CorpusTokenizer, open_fast, save_copy, save_trained, train_tokenizer
from tests.preparation.small_corpus import sentences

SPECIAL = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    save_trained(train_tokenizer(sentences(1, 50), 500), path, max_length=256)
    return path


@pytest.fixture(scope="module")
def corpus_tokenizer(directory):
    return CorpusTokenizer(directory)


def test_the_vocabulary_is_padded_to_a_multiple_of_64_and_special_tokens_come_first(directory):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert len(tokenizer) == 512
    assert tokenizer.convert_ids_to_tokens(range(5)) == SPECIAL
    assert tokenizer.convert_ids_to_tokens(511).startswith("[unused")


def test_transformers_loads_it_ready_for_use(directory):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.is_fast
    assert tokenizer.model_max_length == 256
    assert [*tokenizer.special_tokens_map.values()] == [*map(str, tokenizer.all_special_tokens)]
    encoded = tokenizer("the long", " window")
    assert list(encoded) == ["input_ids", "attention_mask"]
    assert tokenizer.decode(encoded["input_ids"]) == "[CLS]the long[SEP] window[SEP]"


def test_a_mask_takes_the_space_before_it_along(directory):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    the, mask, window = (tokenizer.encode(text, add_special_tokens=False) for text in ("the", "[MASK]", " window"))
    assert tokenizer.encode("the [MASK] window", add_special_tokens=False) == the + mask + window


def test_the_fill_mask_pipeline_takes_it(directory):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    shape = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1)
    model = ModernBertForMaskedLM(ModernBertConfig(vocab_size=len(tokenizer), pad_token_id=3, **shape))
    answers = pipeline("fill-mask", model=model, tokenizer=tokenizer)("the [MASK] window")
    assert len(answers) == 5


@given(st.text())
@example("a [MASK] b  [CLS][SEP] [UNK]\t[PAD][unused0] \r\n")
@example(" \u00a0\u2028 漢字 naïve e\u0301 \U0001f469\u200d\U0001f4bb \x00 ﷽")
def test_any_text_comes_back_exactly(corpus_tokenizer, text):
    [ids] = corpus_tokenizer.encode([text])
    assert corpus_tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    "text", [" two  spaces , and 'quotes' . ", "e\u0301 \u00a0 漢字\r\n\t\x00", "\U0001f469\u200d\U0001f4bb"]
)
def test_transformers_gives_a_text_back_exactly_too(directory, text):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_a_text_that_mentions_special_tokens_puts_none_into_the_corpus(corpus_tokenizer):
    [ids] = corpus_tokenizer.encode(["predict [MASK] between [CLS] and [SEP], as [unused0]"])
    assert ids.min() >= len(SPECIAL)
    assert all("[unused" not in token for token in map(corpus_tokenizer.decode, ids[:, None]))


def test_the_same_texts_give_the_same_tokenizer():
    texts = [*sentences(3, 100), "".join(random.Random(0).choices("abcdefgh ", k=20_000))]
    assert train_tokenizer(texts, 1024).to_str() == train_tokenizer(texts, 1024).to_str()


def test_a_tokenizer_keeps_its_fingerprint_when_transformers_saves_it_again(directory, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer("some text", truncation=True, padding="max_length", max_length=8)
    tokenizer.save_pretrained(tmp_path)
    assert fingerprint(tmp_path) == fingerprint(directory)


def test_a_tokenizer_brought_along_gives_the_same_ids_and_the_row_length(directory, tmp_path):
    save_copy(directory, tmp_path, max_length=1024)
    assert fingerprint(tmp_path) == fingerprint(directory)
    assert AutoTokenizer.from_pretrained(tmp_path).model_max_length == 1024


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"mask_token": None}, r"mask_token is wanted to be \[MASK\], and it has none"),
        ({"sep_token": "</s>"}, r"sep_token is wanted to be \[SEP\], and it has </s>"),
    ],
)
def test_a_tokenizer_without_one_of_the_special_tokens_is_refused_by_name(directory, tmp_path, change, complaint):
    save_copy(directory, tmp_path, max_length=64)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        content = json.loads((tmp_path / name).read_text()) | change
        (tmp_path / name).write_text(json.dumps({key: value for key, value in content.items() if value}))
    with pytest.raises(DataError, match=complaint):
        open_fast(tmp_path)


def test_a_special_token_that_is_named_but_has_no_id_is_refused(directory, tmp_path):
    save_copy(directory, tmp_path, max_length=64)
    content = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(content.replace("[PAD]", "[GAP]"))
    with pytest.raises(DataError, match=r"\[PAD\] is not in tokenizer\.json"):
        open_fast(tmp_path)


@pytest.mark.parametrize("content", ["{", '{"model": {"type": "none"}}'])
def test_a_broken_tokenizer_is_named(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match=str(tmp_path)):
        open_fast(tmp_path)
