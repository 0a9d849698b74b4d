"""Word starts by jieba and by the tokenizer's pre-tokenizer, in a text and in the rows of a corpus."""

import json
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
import rjieba
from hypothesis import example, given
from hypothesis import strategies as st
from streaming import StreamingDataset

from rotary_foundry.data_prep import encoding
from rotary_foundry.data_prep.encoding import CorpusTokenizer
from rotary_foundry.data_prep.inspection.verify import verify
from rotary_foundry.data_prep.pipeline import prepare
from rotary_foundry.data_prep.statistics import Statistics
from rotary_foundry.data_prep.tokenizer import save_trained, train_tokenizer, train_wordpiece
from rotary_foundry.data_prep.words import GPT2
from rotary_foundry.utils.errors import DataError
from tests.data_prep.small_corpus import sentences

CHINESE = "我们去北京大学学习。"
TEXTS = [*sentences(1, 20), CHINESE, CHINESE]


@pytest.fixture(scope="module", params=["bpe", "wordpiece"])
def directory(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    trained = train_wordpiece(lambda: TEXTS, 128) if request.param == "wordpiece" else train_tokenizer(TEXTS, 320)
    save_trained(trained, path, max_length=64)
    return path


@pytest.fixture(scope="module")
def tokenizers(directory):
    return [CorpusTokenizer(directory, kind) for kind in ("jieba", "pre_tokenizer")]


def words(directory: Path, kind: str, text: str) -> list[str]:
    """The words of a text, as their tokens joined."""
    tokenizer = CorpusTokenizer(directory, kind)
    ids, lengths, starts = tokenizer.encode_words([text])
    assert starts.dtype == np.uint8
    assert len(starts) == len(ids) == lengths.sum()
    groups = np.split(ids, np.flatnonzero(starts)[1:])
    return [tokenizer.decode(group).replace(" ", "") for group in groups]


def test_a_word_that_jieba_finds_begins_once_however_many_tokens_it_has(directory):
    assert words(directory, "jieba", CHINESE) == ["我们", "去", "北京大学", "学习", "。"]
    assert words(directory, "jieba", f"the encoder\n{CHINESE}")[-5:] == ["我们", "去", "北京大学", "学习", "。"]


def test_words_of_the_pre_tokenizer_are_those_of_the_tokenizers_library(directory):
    text = f"the encoder's naïve  window,\n    {CHINESE} 🙂"
    tokenizer = CorpusTokenizer(directory, "pre_tokenizer")
    library = tokenizer.tokenizer.encode(text, add_special_tokens=False)
    expected = [1, *(before != this for before, this in zip(library.word_ids, library.word_ids[1:], strict=False))]
    ids, _, starts = tokenizer.encode_words([text])
    assert ids.tolist() == library.ids
    assert starts.tolist() == expected


def test_words_of_a_byte_level_tokenizer_are_gpt_2s(tmp_path):
    save_trained(train_tokenizer(TEXTS, 320), tmp_path, max_length=64)
    text = "the naïve window's encoder attends, 漢字 and 🙂"
    _, _, starts = CorpusTokenizer(tmp_path, "pre_tokenizer").encode_words([text])
    assert starts.sum() == len(GPT2.findall(text))


AWKWARD = st.lists(st.text() | st.sampled_from([" ", "\r\n", "\u3000", "[MASK]", "it's", "e\u0301", "北京", "👩‍💻"]))


@given(AWKWARD.map("".join))
@example("\u3000 \n")
@example("北京\u0301大学")
def test_every_text_has_a_flag_for_each_token_and_its_first_token_begins_a_word(tokenizers, text):
    assert "".join(rjieba.cut(text)) == text
    for tokenizer in tokenizers:
        ids, lengths, starts = tokenizer.encode_words(["", text, ""])
        assert len(starts) == len(ids)
        assert lengths.tolist() == [0, len(ids), 0]
        assert starts[:1].all()
        assert set(starts.tolist()) <= {0, 1}


def test_the_flags_do_not_depend_on_what_is_encoded_together(directory, monkeypatch):
    texts = [CHINESE, "", *sentences(2, 10), f"the {CHINESE} token"]
    for kind in ("jieba", "pre_tokenizer"):
        alone = [CorpusTokenizer(directory, kind).encode_words([text])[2].tolist() for text in texts]
        with monkeypatch.context() as patch:
            patch.setattr(encoding, "GROUP", 300)
            patch.setattr(encoding, "KEPT", 50)
            _, lengths, starts = CorpusTokenizer(directory, kind).encode_words(texts)
        assert [part.tolist() for part in np.split(starts, np.cumsum(lengths)[:-1])] == alone


def samples_of(directory: Path) -> list[dict]:
    return list(StreamingDataset(local=str(directory), shuffle=False, batch_size=1))


@pytest.mark.usefixtures("numbers_of_our_own")
@pytest.mark.parametrize("kind", ["jieba", "pre_tokenizer"])
def test_rows_say_where_words_begin_and_their_tokens_are_the_same(config, tmp_path, kind):
    prepare(config)
    with_words = replace(config, out=str(tmp_path / "words"), word_starts=kind)
    prepare(with_words)
    assert not verify(with_words.out).problems
    tokenizer = CorpusTokenizer(Path(with_words.out, "tokenizer"), kind)
    lines = Path(config.sources["mine"].path).read_text(encoding="utf-8").splitlines()
    flags = {}  # of each text, by its content ids
    for line in lines:
        ids, _, starts = tokenizer.encode_words([json.loads(line)["text"]])
        flags[tuple(ids.tolist())] = starts.tolist()
    whole = 0
    for row_length in config.row_lengths:
        name = f"mine/{row_length}/train"
        before, after = samples_of(Path(config.out, name)), samples_of(Path(with_words.out, name))
        assert len(before) == len(after)
        for plain, sample in zip(before, after, strict=True):
            assert plain["tokens"].tolist() == sample["tokens"].tolist()
            assert sample["word_starts"].dtype == np.uint8
            assert len(sample["word_starts"]) == len(sample["tokens"])
            ends = list(accumulate(sample["lengths"].tolist()))
            for start, end in zip([0, *ends], ends, strict=False):
                found = sample["word_starts"][start:end].tolist()
                assert found[:2] == [1, 1] and found[-1] == 1  # [CLS], the first token and [SEP]
                expected = flags.get(tuple(sample["tokens"][start + 1 : end - 1].tolist()))
                whole += expected is not None
                assert expected is None or found[1:-1] == expected
    assert whole > 20


@pytest.mark.usefixtures("numbers_of_our_own")
def test_a_corpus_without_words_is_as_before_and_another_setting_is_refused(config):
    prepare(config)
    made_of = Statistics.read(config.out).configuration
    assert "word_starts" not in made_of
    assert made_of["tokenizer"] == {"vocab_size": 320}
    index = json.loads(Path(config.out, "mine/64/train/index.json").read_text())
    assert index["shards"][0]["column_names"] == ["documents", "lengths", "tokens"]
    with pytest.raises(DataError, match="shards made with other values of word_starts"):
        prepare(replace(config, word_starts="pre_tokenizer"))
