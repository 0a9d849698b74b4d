"""Words, each encoded once, against `tokenizers` itself, which encodes the whole text."""

import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers

from rotary_foundry.data_prep import encoding
from rotary_foundry.data_prep.encoding import Encoder
from rotary_foundry.data_prep.tokenizer import train_tokenizer
from rotary_foundry.data_prep.words import words_of
from tests.data_prep.small_corpus import sentences

UNASSIGNED = {"Cn", "Co", "Cs"}  # and private use, and halves of a pair
TEXTS = [*sentences(1, 200), "def f(x):\n    return it's_12345 + 'é' * 7\n\n\n" * 9]


def modernberts() -> Tokenizer:
    """One with all that ModernBERT's tokenizer has: NFC, and added tokens sought before and after it."""
    tokenizer = train_tokenizer(TEXTS, 700)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ("|||IP_ADDRESS|||", "<|pad|>")])
    tokenizer.add_tokens([AddedToken(token, normalized=True) for token in ("[unused0]", "ADDRESS", "\n\n  ", "é")])
    return tokenizer


def with_prefix_space() -> Tokenizer:
    """One that begins every text with a space, whose words are another's."""
    tokenizer = train_tokenizer(TEXTS, 700)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def berts() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(special_tokens=["[UNK]"], show_progress=False))
    return tokenizer


def with_greedy_token() -> Tokenizer:
    """One with an added token that takes the blanks beside it along."""
    tokenizer = train_tokenizer(TEXTS, 700)
    tokenizer.add_tokens([AddedToken("<br>", lstrip=True, rstrip=True, normalized=False)])
    return tokenizer


def with_token_behind_a_special_one() -> Tokenizer:
    """One with an added token that begins inside [SEP]: where that is spelled, the library does not see it."""
    tokenizer = train_tokenizer(TEXTS, 700)
    tokenizer.add_tokens([AddedToken("P]x", normalized=False)])
    return tokenizer


TOKENIZERS = {
    made.__name__: made
    for made in (modernberts, with_prefix_space, berts, with_greedy_token, with_token_behind_a_special_one)
} | {"trained": lambda: train_tokenizer(TEXTS, 700)}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request) -> Tokenizer:
    tokenizer = TOKENIZERS[request.param]()
    tokenizer.encode_special_tokens = True
    return tokenizer


def library(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


PARTS = [" ", "  ", " " * 25, "\n", "\n\n  ", "\r\n", "\t", "\x00", "\x1c", "\x85", "\u00a0", "\u2028", "\u3000"]
PARTS += ["e\u0301", "\u0301", "é", "\u212b", "漢字", "\U0001f469\u200d\U0001f4bb", "ⅷ", "²", "٣", "ß", "\u200b"]
PARTS += ["it's", "'ll", "''s", "12345", "def f():", "||IP_ADDRESS|||", "|||", "[MASK]", "[SEP]x", "[unused0]", "<br>"]


@settings(deadline=None)  # the first one that is not ASCII has a table made
@given(st.lists(st.text(max_size=3) | st.sampled_from(PARTS)).map("".join))
@example("a |||IP_ADDRESS|||ADDRESS  [SEP]x  <br> é e\u0301 \n\n   x")
def test_the_words_of_any_text_have_its_ids(tokenizer, text):
    assert "".join(words_of(tokenizer)(text)) == text
    assert Encoder(tokenizer).encode([text])[0].tolist() == library(tokenizer, text)


@pytest.mark.parametrize("step", [40, pytest.param(1, marks=pytest.mark.long)])
def test_every_character_is_cut_from_its_neighbours_as_the_library_does(step):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = words_of(tokenizer)
    known = [char for char in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(char) not in UNASSIGNED]
    assert len(known) > 140_000
    for first in range(0, len(known), 20 * step):
        some = known[first : first + 20]
        text = "".join(f"a{char}b 1{char}2 !{char}? {char}  {char}{char}\n{char} " for char in some)
        ends = np.cumsum([len(word) for word in words(text)])
        theirs = [end for _, (_, end) in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
        assert ends.tolist() == theirs, f"between U+{ord(some[0]):04X} and U+{ord(some[-1]):04X}"


def test_a_text_with_a_character_newer_than_python_is_left_whole():
    assert len(words_of(train_tokenizer(TEXTS, 700))("ab \U0003347a")) == 2  # no letter to any of them
    assert words_of(train_tokenizer(TEXTS, 700))("ab \U00033479") == ["ab \U00033479"]


def test_words_are_cut_only_where_it_is_known_how():
    cuts = {name: len(words_of(made())("the long window")) > 1 for name, made in TOKENIZERS.items()}
    assert [name for name, cut in cuts.items() if cut] == ["modernberts", "trained"]


def test_a_text_that_nfc_would_change_is_left_whole():
    words = words_of(modernberts())
    assert words("cafe\u0301 au lait") == ["cafe\u0301 au lait"]
    assert words("café au lait") == ["caf", "é", " au", " lait"]


def test_what_was_forgotten_is_learned_again(monkeypatch):
    tokenizer = train_tokenizer(TEXTS, 700)
    encoder = Encoder(tokenizer)
    monkeypatch.setattr(encoding, "KEPT", 10)
    for text in ("one two three", "three four", "one two three"):
        assert encoder.encode([text])[0].tolist() == library(tokenizer, text)
        assert sum(map(len, encoder._ids)) <= 10 + len(text)
