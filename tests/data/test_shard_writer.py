"""Our shards are Streaming's, but for the compressed bytes."""

import json
from pathlib import Path

import numpy as np
import pytest
import zstd
from streaming import MDSWriter, StreamingDataset

from rotary_foundry.data.rows import SHARD_HASH, Row, columns, encode_row
from rotary_foundry.data.shard_writer import ShardWriter
from rotary_foundry.utils.errors import DataError


def some_rows(dtype: np.dtype, word_starts: bool = False) -> list[Row]:
    """Of one to 70,000 tokens, in one document to as many."""
    generator = np.random.default_rng(0)
    rows = []
    for tokens in (1, 2, 255, 256, 300, 1024, 65_535, 65_536, 70_000, *range(3, 60)):
        cuts = np.unique(generator.integers(1, max(2, tokens), generator.integers(0, 400)))
        lengths = np.diff([0, *cuts[cuts < tokens], tokens]).astype(np.uint32)
        documents = generator.integers(0, 2**32, len(lengths)).astype(np.uint32)
        ids = generator.integers(0, np.iinfo(dtype).max, tokens).astype(dtype)
        rows.append(Row(ids, lengths, documents, np.ones(tokens, np.uint8) if word_starts else None))
    return rows


def contents(folder: Path) -> tuple[dict, dict[str, bytes]]:
    """The index without what depends on compression, and the decompressed shards."""
    index = json.loads((folder / "index.json").read_text())
    for shard in index["shards"]:
        stored = shard.pop("zip_data")
        assert (folder / stored["basename"]).stat().st_size == stored["bytes"]
    return index, {path.name: zstd.decompress(path.read_bytes()) for path in folder.glob("*.zstd")}


@pytest.mark.parametrize(
    ("dtype", "word_starts"), [(np.dtype(np.uint16), False), (np.dtype(np.uint32), False), (np.dtype(np.uint16), True)]
)
def test_the_same_rows_give_the_shards_that_streaming_writes(tmp_path, dtype, word_starts):
    rows = some_rows(dtype, word_starts)
    ours = ShardWriter(tmp_path / "ours", dtype, size_limit=200_000, word_starts=word_starts)
    theirs = MDSWriter(
        out=str(tmp_path / "theirs"),
        columns=columns(dtype, word_starts),
        compression="zstd",
        hashes=[SHARD_HASH],
        size_limit=200_000,
    )
    with theirs:
        for row in rows:
            ours.write(row)
            theirs.write(encode_row(row, dtype))
    ours.finish()
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")
    assert len(contents(tmp_path / "ours")[1]) >= 3


@pytest.mark.usefixtures("numbers_of_our_own")
def test_streaming_reads_our_shards_with_their_hashes_compared(tmp_path):
    rows = some_rows(np.dtype(np.uint16), word_starts=True)
    writer = ShardWriter(tmp_path / "ours", np.dtype(np.uint16), size_limit=100_000, word_starts=True)
    for row in rows:
        writer.write(row)
    writer.finish()
    read = StreamingDataset(local=str(tmp_path / "ours"), validate_hash=SHARD_HASH, batch_size=1)
    for index, row in enumerate(rows):
        for name, values in read[index].items():
            assert values.tolist() == getattr(row, name).tolist()


def test_a_folder_without_rows_has_an_index_all_the_same(tmp_path):
    ShardWriter(tmp_path / "none", np.dtype(np.uint16)).finish()
    assert json.loads((tmp_path / "none/index.json").read_text()) == {"version": 2, "shards": []}


def test_a_row_that_cannot_be_stored_is_refused(tmp_path):
    writer = ShardWriter(tmp_path / "ours", np.dtype(np.uint16))
    with pytest.raises(DataError, match="token id 65536 does not fit uint16"):
        writer.write(Row(np.array([65_536]), np.uint32([1]), np.uint32([0])))
