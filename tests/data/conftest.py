"""Shards of made-up rows, small enough to make for every test that wants them."""

from pathlib import Path

import numpy as np
import pytest
from streaming import MDSWriter
from streaming.base.util import merge_index

from rotary_foundry.data.rows import SHARD_HASH, Row, columns, encode_row, token_dtype

REPOSITORY = Path(__file__).parents[2]
ROW_LENGTH = 32
ROWS = {"code": 300, "docs": 200, "web": 51}


def write_rows(
    root: Path, split: str = "train", rows: dict[str, int] = ROWS, parts: int = 0, word_starts: bool = False
) -> None:
    """Shards of random rows; every row is full, of one to several documents.

    With `parts`, a source's shards lie in that many folders below the one with its index, as `data_prep` writes them.
    With `word_starts`, rows have this column, with words of two tokens.
    """
    generator = np.random.default_rng(0)
    dtype = token_dtype(512)
    for source, count in rows.items():
        folder = root / source / str(ROW_LENGTH) / split
        for part in range(max(1, parts)):
            out = MDSWriter(
                out=str(folder / f"{part:05}") if parts else str(folder),
                columns=columns(dtype, word_starts),
                compression="zstd",
                hashes=[SHARD_HASH],
                size_limit=5000,
            )
            with out:
                for _ in range(part, count, max(1, parts)):
                    cuts = np.unique(generator.integers(1, ROW_LENGTH, 3))
                    lengths = np.diff([0, *cuts, ROW_LENGTH]).astype(np.uint32)
                    documents = np.arange(len(lengths), dtype=np.uint32)
                    tokens, starts = generator.integers(5, 512, ROW_LENGTH), None
                    if word_starts:
                        starts = np.concatenate([np.arange(length) % 2 == 0 for length in lengths]).astype(np.uint8)
                    out.write(encode_row(Row(tokens, lengths, documents, starts), dtype))
        if parts:
            merge_index(str(folder), keep_local=True)


@pytest.fixture(scope="session")
def row_folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("rows")
    write_rows(root)
    return root
