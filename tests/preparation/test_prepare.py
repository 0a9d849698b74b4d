"""The whole way from texts to shards, on a small corpus, read back by Streaming."""

import math
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from streaming import StreamingDataset

from encoder_foundry.data.rows import Manifest, decode_row
from encoder_foundry.errors import DataError
from encoder_foundry.preparation import pipeline
from encoder_foundry.preparation.config import TokenizerConfig, TrainTokenizer
from encoder_foundry.preparation.corpus import gather
from encoder_foundry.preparation.pipeline import prepare
from encoder_foundry.preparation.report import table
from encoder_foundry.preparation.statistics import Statistics
from encoder_foundry.preparation.tokenizer import CorpusTokenizer
from tests.preparation.small_corpus import sentences, write_jsonl


def content(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def rows_of(directory: Path) -> list[list[np.ndarray]]:
    return [decode_row(sample) for sample in StreamingDataset(local=str(directory), shuffle=False, batch_size=1)]


def test_shards_hold_every_document_of_the_corpus_and_manifests_tell_the_truth(config):
    prepare(config)
    out = Path(config.out)
    tokenizer = CorpusTokenizer(out / "tokenizer")
    corpus = gather(config.sources, config.validation)
    for source, row_length, split in product(corpus.sources, config.row_lengths, ("train", "validation")):
        directory = out / source.name / str(row_length) / split
        rows = rows_of(directory)
        documents = [document for row in rows for document in row]
        tokens = sum(map(len, documents))
        assert Manifest.read(directory) == Manifest(
            source=source.name,
            split=split,
            row_length=row_length,
            rows=len(rows),
            documents=len(documents),
            tokens=tokens,
            fill=tokens / (len(rows) * row_length),
            tokenizer=tokenizer.fingerprint,
        )
        assert max(sum(map(len, row)) for row in rows) <= row_length
        assert all(d[0] == tokenizer.cls_id and d[-1] == tokenizer.sep_id for d in documents)
        expected = Counter()
        for ids in tokenizer.encode([document.text for document in source.documents[split]]):
            expected.update(bytes(ids[at : at + row_length - 2]) for at in range(0, len(ids), row_length - 2))
        assert Counter(bytes(document[1:-1].astype(np.uint32)) for document in documents) == expected


def test_a_last_row_that_cannot_be_filled_is_reported_when_it_is_left_out(config, caplog):
    with caplog.at_level("INFO"):
        prepare(replace(config, row_lengths=[256]))
    assert "mine: left out" in caplog.text
    assert Manifest.read(Path(config.out, "mine", "256", "train")).fill >= 0.99


def test_statistics_count_the_corpus_and_give_the_held_out_entropy(config):
    prepare(config)
    statistics = Statistics.read(Path(config.out))
    corpus = gather(config.sources, config.validation)
    tokenizer = CorpusTokenizer(Path(config.out, "tokenizer"))
    held_out = Counter()
    for source in corpus.sources:
        texts = [document.text for document in source.documents["validation"]]
        ids = tokenizer.encode(texts)
        counts = statistics.sources[source.name].validation
        assert (counts.documents, counts.tokens) == (len(texts), sum(map(len, ids)))
        assert counts.bytes == sum(len(text.encode()) for text in texts)
        held_out.update(id_ for document in ids for id_ in document.tolist())
    total = held_out.total()
    entropy = -sum(count / total * math.log(count / total) for count in held_out.values())
    assert statistics.unigram_entropy == pytest.approx(entropy)
    assert table(Path(config.out)).row_count == 4


def test_the_same_input_gives_the_same_bytes(config, tmp_path):
    prepare(config)
    prepare(replace(config, out=str(tmp_path / "again")))
    assert content(tmp_path / "out") == content(tmp_path / "again")


def test_running_again_changes_nothing_and_says_so(config, caplog, monkeypatch):
    prepare(config)
    before = content(Path(config.out))
    monkeypatch.setattr(pipeline, "_make", None)
    with caplog.at_level("INFO"):
        prepare(config)
    assert "nothing to do" in caplog.text
    assert content(Path(config.out)) == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"row_lengths": [64, 128]}, "row_lengths"),
        ({"validation": 0.3}, "validation"),
        ({"tokenizer": TokenizerConfig(train=TrainTokenizer(384))}, "tokenizer"),
    ],
)
def test_shards_of_another_configuration_are_refused_and_kept(config, change, named):
    prepare(config)
    before = content(Path(config.out))
    with pytest.raises(DataError, match=f"other values of {named}; delete it, or choose another"):
        prepare(replace(config, **change))
    assert content(Path(config.out)) == before


def test_shards_of_another_corpus_are_refused_and_kept(config, tmp_path):
    prepare(config)
    before = content(Path(config.out))
    write_jsonl(tmp_path / "mine.jsonl", sentences(1, 81))
    with pytest.raises(DataError, match="other documents"):
        prepare(config)
    assert content(Path(config.out)) == before


def test_a_folder_of_something_else_is_refused_and_kept(config, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="something else"):
        prepare(config)
    assert content(tmp_path / "out") == {"thesis.txt": b"precious"}


def test_an_interrupted_run_leaves_nothing_that_looks_whole_and_does_not_stand_in_the_way(config, monkeypatch):
    written = []

    def interrupted(documents, tokenizer, out, *rest):
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(out)
        write(documents, tokenizer, out, *rest)

    write = pipeline._write_rows
    monkeypatch.setattr(pipeline, "_write_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(config)
    assert len(written) == 5
    assert not written[0].exists()
    assert not Path(config.out).exists()
    monkeypatch.undo()
    prepare(config)
    assert Statistics.read(Path(config.out))


def test_a_tokenizer_brought_along_is_used_and_stored_beside_the_shards(config, tmp_path):
    prepare(config)
    tokenizer = TokenizerConfig(path=str(tmp_path / "out" / "tokenizer"))
    prepare(replace(config, tokenizer=tokenizer, out=str(tmp_path / "second")))
    first, second = content(tmp_path / "out"), content(tmp_path / "second")
    assert first.keys() == second.keys()
    assert {name for name in first if first[name] != second[name]} <= {  # transformers words these in its own way
        "statistics.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/special_tokens_map.json",
    }


def test_a_place_that_cannot_be_written_is_named(config, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/out: cannot be written"):
        prepare(replace(config, out=str(tmp_path / "file" / "out")))
