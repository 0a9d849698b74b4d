"""The tokenizer that is trained here, and what is asked of one that is brought along."""

import json
import random
import time

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    BertTokenizerFast,
    GPT2TokenizerFast,
    LlamaTokenizerFast,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedTokenizerFast,
    RobertaTokenizerFast,
    pipeline,
)

from rotary_foundry.data.rows import Frame, fingerprint
from rotary_foundry.data.special_tokens import special_ids
from rotary_foundry.data_prep import encoding
from rotary_foundry.data_prep.encoding import CorpusTokenizer, pieces
from rotary_foundry.data_prep.tokenizer import RUNS, open_brought, save_copy, save_trained, train_tokenizer
from rotary_foundry.utils.errors import DataError
from tests.data_prep.small_corpus import sentences

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
    assert len(filled(AutoTokenizer.from_pretrained(directory), "the [MASK] window")) == 5


def filled(tokenizer, text):
    """What a model that has learned nothing fills in."""
    shape = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1)
    vocab_size, pad = len(tokenizer), tokenizer.pad_token_id
    model = ModernBertForMaskedLM(ModernBertConfig(vocab_size=vocab_size, pad_token_id=pad, **shape))
    return pipeline("fill-mask", model=model, tokenizer=tokenizer)(text)


# What tokenizers stumble over: blanks of every kind, characters that join or combine, controls, spelled tokens.
AWKWARD = st.lists(
    st.text()
    | st.sampled_from(
        [" ", "  ", " " * 24, " " * 25, "\n", "\r\n", "\t", "\x00", "\x1c", "\x7f", "\x85", "\u00a0", "\u2028"]
    )
    | st.sampled_from(
        [*SPECIAL, "[unused0]", "12345", "it's", "def f():", "e\u0301", "漢字", "\U0001f469\u200d\U0001f4bb", "﷽"]
    )
).map("".join)


@given(AWKWARD)
@example("a [MASK] b  [CLS][SEP] [UNK]\t[PAD][unused0] \r\n")
def test_any_text_comes_back_exactly_from_ids_within_the_vocabulary(corpus_tokenizer, text):
    ids, lengths = corpus_tokenizer.encode([text])
    assert corpus_tokenizer.decode(ids) == text
    assert lengths.tolist() == [len(ids)]
    assert all(len(SPECIAL) <= id_ < corpus_tokenizer.vocab_size for id_ in ids)


def test_many_texts_give_the_ids_of_each_end_to_end(corpus_tokenizer, monkeypatch):
    texts = ["the long window", "", *sentences(2, 20), ""]
    alone = [corpus_tokenizer.encode([text])[0].tolist() for text in texts]
    monkeypatch.setattr(encoding, "GROUP", 300)
    ids, lengths = corpus_tokenizer.encode(texts)
    assert (ids.dtype, lengths.dtype) == (np.uint32, np.int64)
    assert [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])] == alone
    assert [array.tolist() for array in corpus_tokenizer.encode([])] == [[], []]


@given(st.lists(st.tuples(st.text(max_size=8), st.sampled_from([" ", "\n", "\r\n", "\t", "  ", " \n "])), min_size=9))
def test_an_enormous_text_has_the_ids_of_the_whole_although_it_goes_through_in_pieces(corpus_tokenizer, words):
    text = "".join(f"{word}é{blank}" for word, blank in words)
    whole = corpus_tokenizer.tokenizer.encode(text, add_special_tokens=False).ids
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "PIECE", 16)
        patch.setattr(encoding, "GROUP", 40)
        assert len(text) <= 16 or len(list(pieces(text, 16))) > 1
        assert corpus_tokenizer.encode([text])[0].tolist() == whole


@given(AWKWARD)
def test_pieces_are_of_bounded_size_and_make_the_text(text):
    cut = list(pieces(text, 4))
    assert "".join(cut) == text
    assert all(len(piece) <= 8 for piece in cut)


@pytest.mark.parametrize(
    "text", [" two  spaces , and 'quotes' . ", "e\u0301 \u00a0 漢字\r\n\t\x00", "\U0001f469\u200d\U0001f4bb"]
)
def test_transformers_gives_a_text_back_exactly_too(directory, text):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_a_text_that_mentions_special_tokens_puts_none_into_the_corpus(corpus_tokenizer):
    ids, _ = corpus_tokenizer.encode(["predict [MASK] between [CLS] and [SEP], as [unused0]"])
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


def test_a_run_of_up_to_24_spaces_is_one_token_and_the_word_after_it_is_as_at_a_lines_start(corpus_tokenizer):
    def tokens(text):
        return [corpus_tokenizer.decode([id_]) for id_ in corpus_tokenizer.encode([text])[0]]

    assert [tokens(run) for run in RUNS] == [[run] for run in RUNS]
    assert tokens("the\n        the the") == ["the", "\n", " " * 8, "the", " the"]
    assert tokens("the" + " " * 25 + "the") == ["the", " " * 24, " the"]


def test_digits_are_left_to_the_merges():
    tokenizer = train_tokenizer(["in 1984, 1984 and 1984"] * 2, 320)
    assert tokenizer.encode(" 1984", add_special_tokens=False).tokens == ["Ġ1984"]


@pytest.mark.parametrize("letters", ["ACGT", "กขคงจ", "漢字訓練"])
def test_a_document_without_words_costs_no_time_and_changes_no_merge(letters):
    """huggingface/tokenizers#1170, #994, #86: one huge word stalls training and takes all memory."""
    text = "the long window of the long window " * 20
    generator = random.Random(0)
    genome = "".join(generator.choices(letters, k=5_000_000))
    began = time.process_time()
    tokenizer = train_tokenizer([text, f"{text}\n{genome}\n{text}"], 400)
    assert time.process_time() - began < 20  # as words, they would take two minutes
    assert tokenizer.to_str() == train_tokenizer([text, f"{text}\n \n{text}"], 400).to_str()


def test_no_merge_is_spent_on_runs_of_spaces():
    tokenizer = train_tokenizer(["if x:\n        return\n    else:\n        pass"] * 50, 512)
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    assert [token for token in vocabulary if "ĠĠ" in token] == []


BERT = dict(unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", mask_token="[MASK]")
ROBERTA = dict(unk_token="<unk>", cls_token="<s>", sep_token="</s>", pad_token="<pad>", mask_token="<mask>")
TEXTS = sentences(1, 50)


def brought(name: str, path):
    """A tokenizer as a family of models has it, saved by that family's class."""
    byte_level = Tokenizer(models.BPE())
    byte_level.pre_tokenizer, byte_level.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if name == "bert":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
        tokenizer.train_from_iterator(
            TEXTS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=[*BERT.values()], show_progress=False)
        )
        frame, made = ("[CLS]", "[SEP]"), lambda: BertTokenizerFast(tokenizer_object=tokenizer)
    elif name == "roberta":
        tokenizer = byte_level
        tokenizer.train_from_iterator(
            TEXTS,
            trainers.BpeTrainer(
                vocab_size=300, special_tokens=[*ROBERTA.values()], initial_alphabet=alphabet, show_progress=False
            ),
        )
        frame, made = ("<s>", "</s>"), lambda: RobertaTokenizerFast(tokenizer_object=tokenizer)
    elif name == "gpt2":
        tokenizer = byte_level
        tokenizer.train_from_iterator(
            TEXTS,
            trainers.BpeTrainer(
                vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
            ),
        )
        frame, made = None, lambda: GPT2TokenizerFast(tokenizer_object=tokenizer)
    else:
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        tokenizer.train_from_iterator(
            TEXTS, trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
        )
        frame, made = None, lambda: LlamaTokenizerFast(tokenizer_object=tokenizer)
    if frame:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{frame[0]} $A {frame[1]}",
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in frame],
        )
    made().save_pretrained(path)
    return path


@pytest.mark.parametrize(("name", "roles"), [("bert", BERT), ("roberta", ROBERTA), ("gpt2", BERT), ("llama", BERT)])
def test_any_familys_tokenizer_serves_with_its_own_special_tokens_or_with_berts(name, roles, tmp_path):
    save_copy(brought(name, tmp_path / "theirs"), tmp_path / "ours", max_length=64)
    theirs, ours = (AutoTokenizer.from_pretrained(tmp_path / place) for place in ("theirs", "ours"))
    text = "the long window"
    content = theirs.encode(text, add_special_tokens=False)
    cls, sep = (ours.convert_tokens_to_ids(roles[role]) for role in ("cls_token", "sep_token"))
    assert ours.encode(text) == [cls, *content, sep]
    assert [getattr(ours, role) for role in roles if role != "unk_token"] == [
        token for role, token in roles.items() if role != "unk_token"
    ]
    corpus_tokenizer = CorpusTokenizer(tmp_path / "ours")
    assert corpus_tokenizer.frame == Frame((cls,), (sep,))
    assert corpus_tokenizer.encode([text])[0].tolist() == content
    assert corpus_tokenizer.vocab_size % 64 == 0
    assert 0 <= corpus_tokenizer.vocab_size - len(ours) < 64
    ids = special_ids(tmp_path / "ours", corpus_tokenizer.tokenizer)
    assert ids["mask_token"] == ours.mask_token_id
    assert len(filled(ours, f"the {ours.mask_token} window")) == 5
    assert ours.mask_token_id not in corpus_tokenizer.encode([f"the {ours.mask_token} window"])[0]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_decoders_tokenizer_stays_as_it_is_and_its_begin_and_end_tokens_frame_documents(name, tmp_path):
    save_copy(brought(name, tmp_path / "theirs"), tmp_path / "ours", max_length=64, causal=True)
    assert fingerprint(tmp_path / "ours") == fingerprint(tmp_path / "theirs")
    ours = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert CorpusTokenizer(tmp_path / "ours").frame == Frame((ours.bos_token_id,), (ours.eos_token_id,))
    assert ours.cls_token is None and ours.mask_token is None


@pytest.mark.parametrize("role", ["bos_token", "eos_token"])
def test_a_decoders_tokenizer_without_a_begin_or_an_end_token_is_refused_by_key(role, tmp_path):
    brought("llama", tmp_path / "theirs")
    tokenizer = Tokenizer.from_file(str(tmp_path / "theirs/tokenizer.json"))
    roles = {"bos_token": "<s>", "eos_token": "</s>"}
    del roles[role]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles).save_pretrained(tmp_path / "ours")
    says = rf"ours: the tokenizer has no {role}, which `tokenizer\.causal: true` needs around every document; name"
    with pytest.raises(DataError, match=says):
        open_brought(tmp_path / "ours", causal=True)


def test_a_tokenizer_trained_for_a_decoder_frames_rows_but_leaves_a_prompt_open(tmp_path):
    save_trained(train_tokenizer(TEXTS, 500, causal=True), tmp_path, max_length=64, causal=True)
    tokenizer, corpus_tokenizer = AutoTokenizer.from_pretrained(tmp_path), CorpusTokenizer(tmp_path)
    assert len(tokenizer) == 512
    assert tokenizer.convert_ids_to_tokens(range(3)) == ["<s>", "</s>", "<pad>"]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2)
    assert corpus_tokenizer.frame == Frame((0,), (1,))
    content = corpus_tokenizer.encode(["the long window"])[0].tolist()
    assert tokenizer.encode("the long window") == [0, *content]
    assert tokenizer.decode(content) == "the long window"
    assert min(corpus_tokenizer.encode(["between <s> and </s>, <pad>"])[0]) > 2  # text, and no special tokens


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_a_tokenizer_that_lacks_nothing_keeps_its_fingerprint(name, tmp_path, caplog):
    with caplog.at_level("INFO"):
        save_copy(brought(name, tmp_path / "theirs"), tmp_path / "ours", max_length=64)
    assert fingerprint(tmp_path / "ours") == fingerprint(tmp_path / "theirs")
    assert "was given" not in caplog.text


def test_what_a_tokenizer_was_given_is_told(tmp_path, caplog):
    with caplog.at_level("INFO"):
        save_copy(brought("gpt2", tmp_path / "theirs"), tmp_path / "ours", max_length=64)
    for given_ in ("[CLS] as its cls_token", "[MASK] as its mask_token", "[CLS] before and [SEP] after each text"):
        assert f"theirs: the tokenizer was given {given_}" in caplog.text


def change_roles(path, **roles):
    config = json.loads((path / "tokenizer_config.json").read_text()) | roles
    (path / "tokenizer_config.json").write_text(json.dumps(config))


def test_a_special_token_that_is_named_but_has_no_id_is_refused(directory, tmp_path):
    save_copy(directory, tmp_path, max_length=64)
    change_roles(tmp_path, sep_token="</s>")
    with pytest.raises(DataError, match=r"sep_token is </s>, which is not in tokenizer\.json; add the token"):
        open_brought(tmp_path)


def test_a_special_token_in_two_roles_is_refused(directory, tmp_path):
    save_copy(directory, tmp_path, max_length=64)
    change_roles(tmp_path, pad_token="[SEP]")
    with pytest.raises(DataError, match=r"\[SEP\] is both sep_token and pad_token; give each role a token of its own"):
        open_brought(tmp_path)


@pytest.mark.parametrize("role", ["unk_token", "pad_token"])
def test_a_special_token_that_stands_twice_has_one_id_or_is_refused(role, directory, tmp_path):
    """asafam/HebrewModernBERT 7963af4: [UNK] and [PAD] were added to a vocabulary that had them."""
    save_copy(directory, tmp_path, max_length=64)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    token = BERT[role]
    (added,) = (one for one in content["added_tokens"] if one["content"] == token)
    content["added_tokens"].append(added | {"id": 5000})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    brought = open_brought(tmp_path)
    vocabulary = brought.tokenizer.get_vocab(with_added_tokens=True)
    assert vocabulary[token] == content["model"]["vocab"][token]
    assert len(set(vocabulary.values())) == len(vocabulary)


def test_a_token_of_ones_own_takes_the_place_of_an_unused_one(corpus_tokenizer, directory, tmp_path):
    """stephantul/skeletoken#85, AnswerDotAI/ModernBERT#207: unused ids are there for that."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    size, unused = len(tokenizer), [token for token in tokenizer.get_vocab() if token.startswith("[unused")]
    assert unused
    tokenizer.add_tokens(unused[:1], special_tokens=True)
    tokenizer.save_pretrained(tmp_path / "own")
    again = AutoTokenizer.from_pretrained(tmp_path / "own")
    own = tokenizer.convert_tokens_to_ids(unused[0])
    assert len(again) == size <= corpus_tokenizer.vocab_size
    assert again(f"the{unused[0]}window", add_special_tokens=False)["input_ids"].count(own) == 1
    text = "if x:\n        return   1"
    assert again.decode(again.encode(text), skip_special_tokens=True) == text
    assert again.encode(text) == AutoTokenizer.from_pretrained(directory).encode(text)


def test_a_vocabulary_in_which_an_added_token_would_get_another_tokens_id_is_refused(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 3, "c": 4}, "[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"two tokens would share an id.*renumber"):
        open_brought(tmp_path)


@pytest.mark.parametrize("causal", [False, True])
def test_a_tokenizer_without_an_unknown_token_is_refused_before_it_meets_an_unknown_word(causal, tmp_path):
    """huggingface/tokenizers#351: such as one of the letters of DNA."""
    roles = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    roles |= {"bos_token": "[CLS]", "eos_token": "[SEP]"}
    words = [*dict.fromkeys(roles.values()), *"ACGT"]
    tokenizer = Tokenizer(models.WordLevel({word: id_ for id_, word in enumerate(words)}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles).save_pretrained(tmp_path)
    says = (
        r"tokenizer\.json: expected a tokenizer that encodes any text, .* Missing \[UNK\] token .*; add \[UNK\] to its"
    )
    with pytest.raises(DataError, match=says):
        open_brought(tmp_path, causal)
    with pytest.raises(DataError, match=says):
        CorpusTokenizer(tmp_path)


def test_a_tokenizer_that_is_not_a_fast_one_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("[UNK]\n")
    with pytest.raises(DataError, match=r"tokenizer\.json: no such file; a Hugging Face fast tokenizer has one"):
        open_brought(tmp_path)


@pytest.mark.parametrize("content", ["{", '{"model": {"type": "none"}}'])
def test_a_broken_tokenizer_is_named(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match=str(tmp_path)):
        open_brought(tmp_path)


def test_a_prepared_tokenizer_whose_roles_are_gone_is_named(directory, tmp_path):
    save_copy(directory, tmp_path, max_length=64)
    change_roles(tmp_path, sep_token=None)
    with pytest.raises(DataError, match=r"tokenizer_config\.json: neither sep_token nor eos_token is given; prepare"):
        CorpusTokenizer(tmp_path)
    change_roles(tmp_path, sep_token="[SEP]", mask_token="<mask>")
    with pytest.raises(DataError, match=r"mask_token is <mask>, which tokenizer\.json does not have"):
        CorpusTokenizer(tmp_path)
