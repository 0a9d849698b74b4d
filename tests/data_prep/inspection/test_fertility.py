"""The fertility report counts what the held-out text really comes to."""

import numpy as np
import pytest
from rich.console import Console
from streaming import MDSWriter
from streaming.base.util import merge_index
from tokenizers import Tokenizer, models, pre_tokenizers

from rotary_foundry.data.rows import SHARD_HASH, Row, columns, encode_row, token_dtype
from rotary_foundry.data_prep.encoding import CorpusTokenizer
from rotary_foundry.data_prep.inspection.fertility import Fertility, measure, print_fertility
from rotary_foundry.data_prep.tokenizer import save_trained, train_tokenizer
from rotary_foundry.utils.errors import DataError
from tests.data_prep.small_corpus import sentences

TEXTS = {"mine": sentences(1, 30), "yours": ["def f():\n        return 漢字\n"] * 3}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """As `python data_prep` leaves it: two parts a source, of which the first has half the documents, one a row."""
    out = tmp_path_factory.mktemp("corpus")
    save_trained(train_tokenizer(TEXTS["mine"], 320), out / "tokenizer", 4096)
    tokenizer = CorpusTokenizer(out / "tokenizer")
    dtype = token_dtype(tokenizer.vocab_size)
    for source, texts in TEXTS.items():
        for row_length, held_out in ((64, ["of another row length"]), (4096, texts)):
            folder = out / source / str(row_length) / "validation"
            middle = len(held_out) // 2
            for part, there in (("00000", held_out[:middle]), ("00001", held_out[middle:])):
                with MDSWriter(
                    out=str(folder / part), columns=columns(dtype), compression="zstd", hashes=[SHARD_HASH]
                ) as writer:
                    for text in there:
                        ids = tokenizer.encode([text])[0]
                        document = np.array([*tokenizer.frame.before, *ids, *tokenizer.frame.after])
                        writer.write(encode_row(Row(document, np.uint32([len(document)]), np.uint32([0])), dtype))
            merge_index(str(folder))
    return out


@pytest.fixture(scope="module")
def bytes_and_words(tmp_path_factory):
    """Two tokenizers that can be checked by hand: one token a byte, one token a word."""
    path = tmp_path_factory.mktemp("second")
    by_byte = Tokenizer(models.BPE({char: id_ for id_, char in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
    by_byte.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    by_word = Tokenizer(models.WordLevel({"[UNK]": 0}, "[UNK]"))
    by_word.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    for name, tokenizer in (("bytes", by_byte), ("words", by_word)):
        (path / name).mkdir()
        tokenizer.save(str(path / name / "tokenizer.json"))
    return path


def test_words_bytes_and_tokens_are_those_of_the_held_out_text(corpus, bytes_and_words):
    tokenizer = CorpusTokenizer(corpus / "tokenizer")
    mine, yours, every = measure(corpus, bytes_and_words / "bytes")
    for found, texts in ((mine, TEXTS["mine"]), (yours, TEXTS["yours"]), (every, TEXTS["mine"] + TEXTS["yours"])):
        size = sum(len(text.encode()) for text in texts)
        words = sum(len(text.split()) for text in texts)
        ours = len(tokenizer.encode(texts)[0])
        assert found == Fertility(found.source, words=words, bytes=size, ours=ours, theirs=size)
    assert all(found.theirs == found.words for found in measure(corpus, bytes_and_words / "words"))


def test_the_table_tells_tokens_to_a_word_and_to_a_byte_by_source(corpus, bytes_and_words):
    console = Console(width=80, record=True)
    print_fertility(corpus, bytes_and_words / "words", console)
    lines = [line.split() for line in console.export_text().splitlines()]
    yours = measure(corpus, bytes_and_words / "words")[1]
    assert next(line for line in lines if line[:1] == ["yours"]) == [
        "yours",
        "0.00",
        "12",
        f"{yours.ours / 12:.2f}",
        "1.00",
        f"{yours.ours / yours.bytes:.3f}",
        f"{12 / yours.bytes:.3f}",
        f"{12 / yours.ours:.2f}",
    ]
    assert [line[0] for line in lines if line[:1] in (["mine"], ["yours"], ["all"])] == ["mine", "yours", "all"]


def test_what_cannot_be_measured_is_one_line(corpus, bytes_and_words, tmp_path):
    with pytest.raises(DataError, match=r"tokenizer\.json: no such file; a Hugging Face fast tokenizer has one"):
        measure(corpus, tmp_path)
    with pytest.raises(DataError, match=r"no held-out rows there; give a folder that `python data_prep` wrote"):
        save_trained(train_tokenizer(TEXTS["mine"], 320), tmp_path / "tokenizer", 64)
        measure(tmp_path, bytes_and_words / "words")


def test_a_missing_shard_is_named(corpus, bytes_and_words, tmp_path):
    (tmp_path / "tokenizer").symlink_to(corpus / "tokenizer")
    folder = tmp_path / "mine/64/validation"
    folder.mkdir(parents=True)
    (folder / "index.json").write_text((corpus / "mine/64/validation/index.json").read_text())
    with pytest.raises(DataError, match=r"mine/64/validation/00001/shard\.00000\.mds\.zstd: no such file"):
        measure(tmp_path, bytes_and_words / "words")
