"""The WordPiece that is trained for Chinese: BERT's, lower-cased, with each Chinese character a token."""

import subprocess
import sys

import numpy as np
import pytest
from transformers import AutoTokenizer, BertTokenizerFast

from rotary_foundry.data.rows import fingerprint
from rotary_foundry.data_prep.encoding import CorpusTokenizer
from rotary_foundry.data_prep.tokenizer import save_copy, save_trained, train_wordpiece

TEXTS = ["我们在北京大学学习中文。", "The Tokenizer learns tokens, tokenizes naïve texts。", "北京的 GPU 很多！囧"] * 2
TEXTS[-1] = TEXTS[-1].replace("囧", "")  # once only


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("wordpiece")
    save_trained(train_wordpiece(lambda: TEXTS, 150), path, max_length=64)
    return path


def test_the_special_tokens_come_first_and_the_vocabulary_is_padded_to_a_multiple_of_64(directory):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert len(tokenizer) == 192
    assert tokenizer.convert_ids_to_tokens(191).startswith("[unused")


def test_each_chinese_character_is_a_token_and_latin_words_are_lower_cased_pieces(directory):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokens = tokenizer.tokenize("北京Tokens学囧")
    assert (tokens[:2], tokens[-2:]) == (["北", "京"], ["学", "[UNK]"])  # 囧 occurs only once in the texts
    assert "".join(token.removeprefix("##") for token in tokens[2:-2]) == "tokens"
    assert tokenizer.decode(tokenizer.encode("NAÏVE", add_special_tokens=False)) == "naive"


def test_berts_tokenizer_class_opens_it_and_gives_the_same_ids(directory):
    ours, berts = AutoTokenizer.from_pretrained(directory), BertTokenizerFast.from_pretrained(directory)
    roles = ("pad_token_id", "unk_token_id", "cls_token_id", "sep_token_id", "mask_token_id")
    assert [getattr(berts, role) for role in roles] == [0, 1, 2, 3, 4]
    for text in (*TEXTS, "a [MASK] 中\t国 it's ½ ＡＢ １２", "北京 [unused0] 😀"):
        assert berts(text)["input_ids"] == ours(text)["input_ids"]
    pair = berts("北京", "中文")["input_ids"]
    assert pair == ours("北京", "中文")["input_ids"]
    assert pair[0] == 2 and pair.count(3) == 2


def test_a_corpus_is_encoded_with_it_and_special_tokens_in_a_text_are_text(directory):
    corpus_tokenizer = CorpusTokenizer(directory)
    ids, lengths = corpus_tokenizer.encode([*TEXTS, "[MASK] [CLS] [unused3] 北"])
    berts = BertTokenizerFast.from_pretrained(directory)
    parts = np.split(ids, np.cumsum(lengths)[:-1])
    assert [part.tolist() for part in parts[:-1]] == [berts.encode(text, add_special_tokens=False) for text in TEXTS]
    assert not {0, 2, 3, 4} & set(parts[-1].tolist())
    assert corpus_tokenizer.vocab_size == 192


def test_it_serves_as_a_tokenizer_brought_along(directory, tmp_path):
    save_copy(directory, tmp_path, max_length=32)
    assert fingerprint(tmp_path) == fingerprint(directory)


def test_the_most_frequent_characters_are_kept_if_not_all_fit():
    rare = "".join(map(chr, range(0x4E00, 0x4E00 + 200)))
    vocabulary = train_wordpiece(lambda: ["中文 " * 9, "aab " * 5, rare, rare], 64).get_vocab()
    assert len(vocabulary) == 64
    assert {"中", "文", "a", "b", "##a", "##b"} <= vocabulary.keys()


def test_every_process_trains_the_same_tokenizer():
    code = (
        "from rotary_foundry.data_prep.tokenizer import train_wordpiece; "
        "print(train_wordpiece(lambda: ['the long window attends', 'a wide door 中文'] * 3, 128).to_str())"
    )
    first, second = (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in "12"
    )
    assert first == second
