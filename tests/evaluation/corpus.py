"""A prepared corpus with held-out documents that are known, as `python data_prep` lays one out."""

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from streaming import MDSWriter
from streaming.base.util import merge_index

from rotary_foundry.data.packing import Packer
from rotary_foundry.data.rows import SHARD_HASH, Manifest, columns, encode_row, fingerprint, token_dtype
from rotary_foundry.data_prep.encoding import CorpusTokenizer
from rotary_foundry.data_prep.tokenizer import save_trained, train_tokenizer

ROW = 256  # tokens, so documents of more lie in pieces
WORDS = ["encoder", "token", "attends", "window", "document", "naïve", "漢字", "🙂", "the", "of", "and"]
NAMES = [
    f"{first}_{second}" for first in ("alpha", "beta", "gamma", "delta") for second in ("one", "two", "six", "ten")
]


def texts() -> dict[str, list[str]]:
    """Two sources: short documents, and long ones in each of which some names stand exactly twice."""
    generator = random.Random(0)
    short = [" ".join(generator.choices(WORDS, k=generator.randint(10, 60))) for _ in range(6)]
    return {"short": short, "long": [long_text(generator) for _ in range(4)]}


def long_text(generator: random.Random) -> str:
    words = generator.choices(WORDS, k=700)
    for number, name in enumerate(generator.sample(NAMES, 10)):
        words[20 + 25 * number] = name
        if number < 6:  # the others stand once
            words[400 + 40 * number] = name
    return " ".join(words)


def write_corpus(out: Path) -> Path:
    held_out = texts()
    save_trained(train_tokenizer((text for of in held_out.values() for text in of), 384), out / "tokenizer", ROW)
    tokenizer = CorpusTokenizer(out / "tokenizer")
    dtype = token_dtype(tokenizer.vocab_size)
    for source, of_source in held_out.items():
        folder = out / source / str(ROW) / "validation"
        encoded = [tokenizer.encode([text])[0] for text in of_source]
        lengths = np.array([len(ids) for ids in encoded])
        packer = Packer(ROW, tokenizer.frame)
        rows = [
            *packer.add(np.concatenate(encoded), lengths, np.arange(len(encoded), dtype=np.uint32)),
            *packer.finish(),
        ]
        with MDSWriter(
            out=str(folder / "00000"), columns=columns(dtype), compression="zstd", hashes=[SHARD_HASH]
        ) as writer:
            for row in rows:
                writer.write(encode_row(row, dtype))
        merge_index([str(folder / "00000/index.json")], str(folder))
        tokens = sum(len(row.tokens) for row in rows)
        documents = sum(len(row.lengths) for row in rows)
        made = fingerprint(out / "tokenizer")
        fill = tokens / len(rows) / ROW
        Manifest(source, "validation", ROW, len(rows), documents, tokens, fill, made).write(folder)
        table = out / source / "documents/validation/00000.parquet"
        table.parent.mkdir(parents=True)
        sizes = [len(text.encode()) for text in of_source]
        ids = [f"{source}:{number}" for number in range(len(of_source))]
        pq.write_table(pa.table({"id": ids, "bytes": sizes, "tokens": lengths}), table)
    return out
