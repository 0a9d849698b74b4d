"""`data stats`: the counts of what was written, as a table."""

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from rotary_foundry.data_prep.inspection.stats import Documents, gather, print_stats
from rotary_foundry.utils.errors import DataError
from tests.data_prep.inspection.tree import PARTS, Tree


def content_tokens(tree: Tree, source: str, split: str) -> np.ndarray:
    tables = [tree.root / source / "documents" / split / f"{part}.parquet" for part in PARTS[split]]
    return np.concatenate([pq.read_table(table)["tokens"].to_numpy() for table in tables])


def test_documents_bytes_tokens_and_rows_are_those_that_were_written(tree):
    stats = gather(tree.root)
    assert list(stats.documents) == [(source, split) for split in PARTS for source in ("mine", "yours")]
    for (source, split), documents in stats.documents.items():
        lengths = content_tokens(tree, source, split)
        texts = [text for id_, text in tree.texts.items() if id_.startswith(f"{source}-{split}")]
        assert documents.count == len(texts) == len(lengths)
        assert documents.bytes == sum(len(text.encode()) for text in texts)
        assert documents.tokens == documents.tokens_by_length.sum() == lengths.sum()
        for bin_ in range(12):
            inside = (lengths >= 2**bin_) & (lengths < 2 ** (bin_ + 1))
            assert documents.by_length[bin_] == inside.sum()
            assert documents.tokens_by_length[bin_] == lengths[inside].sum()
        for row_length, manifest in stats.rows[source, split].items():
            assert manifest.rows == len(tree.rows[tree.root / source / str(row_length) / split])
    shares = [stats.share(source, "train") for source in ("mine", "yours")]
    tokens = [content_tokens(tree, source, "train").sum() for source in ("mine", "yours")]
    assert shares == pytest.approx([count / sum(tokens) for count in tokens])


def test_a_length_at_the_edge_stands_in_its_own_bin():
    documents = Documents()
    documents.add(np.array([0, 1, 2, 3, 4, 7, 8, 2**31 - 1, 2**29 - 1, 2**29]))
    assert np.flatnonzero(documents.by_length).tolist() == [0, 1, 2, 3, 28, 29, 30]
    assert documents.by_length[:4].tolist() == [2, 2, 2, 1]


def test_without_tables_of_documents_the_pieces_in_the_longest_rows_are_counted(tree, copied):
    for source in ("mine", "yours"):
        shutil.rmtree(copied / source / "documents")
    stats = gather(copied)
    assert not stats.whole
    for (source, split), documents in stats.documents.items():
        assert documents.count == stats.rows[source, split][256].documents
        assert documents.tokens == content_tokens(tree, source, split).sum()
        assert documents.bytes is None


def test_the_table_has_every_source_and_how_full_its_rows_are(tree):
    console = Console(width=100, highlight=False)
    stats = gather(tree.root)
    with console.capture() as capture:
        print_stats(stats, console)
    lines = [line.split() for line in capture.get().splitlines()]
    manifest = stats.rows["mine", "train"][64]
    (mine,) = [line for line in lines if line[:2] == ["mine", "train"]]
    assert mine[2] == "100"
    assert f"({manifest.fill:.1%})" in mine
    total = sum(documents.tokens for (_, split), documents in stats.documents.items() if split == "train")
    bars = [line for line in lines if len(line) > 5 and line[1] == "–"]
    assert sum(int(line[5].replace(",", "")) for line in bars) == total


def test_two_corpora_at_once_are_refused(tree, tmp_path):
    shutil.copytree(tree.root, tmp_path / "data/first")
    shutil.copytree(tree.root, tmp_path / "data/second")
    with pytest.raises(DataError, match="contains more than one corpus"):
        gather(tmp_path / "data")
