"""Gathering: what is dropped, and who is held out."""

import pytest

from encoder_foundry.errors import DataError
from encoder_foundry.preparation.corpus import gather
from encoder_foundry.preparation.readers import SourceConfig
from tests.preparation.small_corpus import sentences, write_jsonl


def source(path, texts):
    return SourceConfig("jsonl", str(write_jsonl(path, texts)))


def held_out(corpus):
    return {document.text for source in corpus.sources for document in source.documents["validation"]}


def trained_on(corpus):
    return {document.text for source in corpus.sources for document in source.documents["train"]}


def test_a_document_never_changes_sides_when_data_is_added(tmp_path):
    old, new = sentences(1, 200), sentences(2, 200)
    before = gather({"a": source(tmp_path / "a.jsonl", old)}, 0.1)
    after = gather({"b": source(tmp_path / "b.jsonl", new + old[100:]), "a": source(tmp_path / "a.jsonl", old)}, 0.1)
    assert held_out(before) == held_out(after) & set(old)
    assert trained_on(before) == trained_on(after) & set(old)


def test_the_fraction_asked_for_is_held_out_and_a_larger_one_only_adds(tmp_path):
    texts = source(tmp_path / "a.jsonl", sentences(1, 1000))
    small, large = (held_out(gather({"a": texts}, fraction)) for fraction in (0.05, 0.2))
    assert 25 < len(small) < 85
    assert 150 < len(large) < 250
    assert small < large


def test_near_empty_and_duplicate_documents_are_dropped_and_the_first_source_keeps_its_own(tmp_path):
    texts = sentences(1, 60)
    corpus = gather(
        {
            "first": source(tmp_path / "a.jsonl", [*texts[:40], texts[3], " \n", "short"]),
            "second": source(tmp_path / "b.jsonl", texts),
        },
        0.2,
    )
    first, second = corpus.sources
    assert (first.near_empty, first.duplicates) == (2, 1)
    assert (second.near_empty, second.duplicates) == (0, 40)
    assert sum(map(len, first.documents.values())) == 40
    assert sum(map(len, second.documents.values())) == 20


def test_an_empty_source_is_named(tmp_path):
    texts = sentences(1, 50)
    for nothing in ([], ["", "short"], texts):
        sources = {"full": source(tmp_path / "a.jsonl", texts), "hollow": source(tmp_path / "b.jsonl", nothing)}
        with pytest.raises(DataError, match="source 'hollow' has no documents"):
            gather(sources, 0.2)


def test_a_source_without_held_out_documents_is_named(tmp_path):
    with pytest.raises(DataError, match="source 'few': none of its 3 documents falls into the validation split"):
        gather({"few": source(tmp_path / "a.jsonl", sentences(1, 3))}, 1e-6)


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(DataError, match=f"source 'folder' cannot be read: .*{tmp_path}"):
        gather({"folder": SourceConfig("jsonl", str(tmp_path))}, 0.1)
