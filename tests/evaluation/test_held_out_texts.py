"""Held-out documents come back as the texts that they were."""

import shutil

import pytest

from rotary_foundry.data_prep.inspection.held_out_texts import describe, held_out
from rotary_foundry.utils.errors import DataError
from tests.evaluation.corpus import texts


def test_documents_that_were_cut_into_rows_are_whole_again(corpus):
    found = held_out(corpus, per_source=100, seed=0)
    assert sorted(text.text for text in found) == sorted(text for of in texts().values() for text in of)
    assert max(text.tokens for text in found) > 2 * 256


def test_the_documents_drawn_follow_from_the_seed(corpus):
    first, again, other = ([text.id for text in held_out(corpus, per_source=3, seed=seed)] for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) == 6


def test_documents_may_have_to_be_long(corpus):
    assert {text.source for text in held_out(corpus, 100, 0, at_least=400)} == {"long"}
    with pytest.raises(DataError, match=r"no held-out document of at least 100,000 tokens found; raise `validation`"):
        held_out(corpus, 100, 0, at_least=100_000)


def test_a_result_says_what_was_read(corpus):
    found = held_out(corpus, per_source=100, seed=0)
    assert describe(corpus, found)["documents"] == {"long": 4, "short": 6}


def test_data_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such folder; .* data=FOLDER"):
        held_out(tmp_path / "nowhere", 10, 0)
    with pytest.raises(DataError, match="no held-out rows there"):
        held_out(tmp_path, 10, 0)


def test_a_corpus_without_tables_is_read_in_pieces(corpus, tmp_path):
    copied = shutil.copytree(corpus, tmp_path / "corpus")
    for tables in copied.glob("*/documents"):
        shutil.rmtree(tables)
    found = held_out(copied, per_source=100, seed=0)
    assert max(text.tokens for text in found) == 254
    assert sum(text.tokens for text in found) == sum(text.tokens for text in held_out(corpus, 100, 0))
