"""A prepared corpus in the layout that `python data_prep` writes, made by hand: its facts are then known."""

import json
import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from streaming import MDSWriter
from streaming.base.util import merge_index
from tokenizers import Tokenizer

from rotary_foundry.data.rows import SHARD_HASH, Manifest, fingerprint
from rotary_foundry.data_prep.tokenizer import save_trained, train_tokenizer

WORDS = ["the", "of", "and", "encoder", "token", "attends", "window", "long", "document", "naïve", "漢字", "🙂"]
PARTS = {"train": {"00000": 60, "00001": 40}, "validation": {"00000": 12}}  # documents of each
ROW_LENGTHS = 64, 256
COLUMNS = {"tokens": "ndarray:uint16", "lengths": "ndarray:uint32", "documents": "ndarray:uint32"}
WORD_STARTS = {"word_starts": "ndarray:uint8"}
RESPONSES = {"responses": "ndarray:uint8"}


@dataclass
class Tree:
    """What was written where."""

    root: Path
    texts: dict[str, str] = field(default_factory=dict)  # by document id
    rows: dict[Path, list[list[str]]] = field(default_factory=dict)  # of each folder of shards: its rows' ids


def write_tree(
    root: Path,
    sources: tuple[str, ...] = ("mine", "yours"),
    causal: bool = False,
    word_starts: bool = False,
    responses: bool = False,
) -> Tree:
    """Two sources; most documents are longer than a row of 64 and share rows of 256.

    With `word_starts`, rows have this column, with words of two tokens; with `responses`, the last third of each
    document is the assistant's.
    """
    columns = COLUMNS | (WORD_STARTS if word_starts else {}) | (RESPONSES if responses else {})
    generator = random.Random(0)
    tree = Tree(root)
    texts = {
        (source, split, part): [_text(generator) for _ in range(count)]
        for source in sources
        for split, parts in PARTS.items()
        for part, count in parts.items()
    }
    trained = train_tokenizer((text for of_part in texts.values() for text in of_part), 343, causal)
    save_trained(trained, root / "tokenizer", max(ROW_LENGTHS), causal)
    for source in sources:
        for split, parts in PARTS.items():
            for part in parts:
                ids = [f"{source}-{split}-{part}.jsonl:{line}" for line in range(len(texts[source, split, part]))]
                tree.texts |= dict(zip(ids, texts[source, split, part], strict=True))
            for row_length in ROW_LENGTHS:
                folder = root / source / str(row_length) / split
                of_split = {part: texts[source, split, part] for part in parts}
                tree.rows[folder] = _write_folder(folder, trained, of_split, (0, 1) if causal else (1, 2), columns)
    return tree


def _text(generator: random.Random) -> str:
    return " ".join(generator.choices(WORDS, k=generator.randint(10, 120)))


def _write_folder(
    folder: Path, tokenizer: Tokenizer, parts: dict[str, list[str]], frame: tuple[int, int], columns: dict[str, str]
) -> list[list[str]]:
    source, row_length, split = folder.parents[1].name, int(folder.parent.name), folder.name
    all_rows, documents, tokens = [], 0, 0
    for part, texts in parts.items():
        ids = [f"{source}-{split}-{part}.jsonl:{line}" for line in range(len(texts))]
        contents = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        table = folder.parents[1] / "documents" / split / f"{part}.parquet"
        table.parent.mkdir(parents=True, exist_ok=True)
        sizes = {"bytes": [len(text.encode()) for text in texts], "tokens": [len(ids) for ids in contents]}
        pq.write_table(pa.table({"id": ids} | sizes), table)
        with MDSWriter(
            out=str(folder / part),
            columns=columns,
            compression="zstd",
            hashes=[SHARD_HASH],
            size_limit=6000,
        ) as writer:
            for row in _packed(contents, row_length, frame):
                sample = {
                    "tokens": np.concatenate([piece for _, piece in row]).astype(np.uint16),
                    "lengths": np.array([len(piece) for _, piece in row], np.uint32),
                    "documents": np.array([number for number, _ in row], np.uint32),
                }
                if "word_starts" in columns:
                    starts = np.concatenate([np.arange(len(piece)) % 2 == 0 for _, piece in row])
                    sample["word_starts"] = starts.astype(np.uint8)
                if "responses" in columns:
                    said = np.concatenate([np.arange(len(piece)) >= len(piece) * 2 // 3 for _, piece in row])
                    sample["responses"] = said.astype(np.uint8)
                writer.write(sample)
                all_rows.append([ids[number] for number, _ in row])
                documents += len(row)
                tokens += sum(len(piece) for _, piece in row)
    merge_index([str(folder / part / "index.json") for part in parts], str(folder))
    fill = tokens / (len(all_rows) * row_length)
    made = fingerprint(folder.parents[2] / "tokenizer")
    Manifest(source, split, row_length, len(all_rows), documents, tokens, fill, made).write(folder)
    return all_rows


def _packed(contents: list[list[int]], row_length: int, frame: tuple[int, int]) -> list[list[tuple[int, list[int]]]]:
    """Pieces with [CLS] and [SEP], or <s> and </s>, one after the other into rows."""
    rows, room = [], 0
    for number, content in enumerate(contents):
        for start in range(0, len(content), row_length - 2):
            piece = [frame[0], *content[start : start + row_length - 2], frame[1]]
            if len(piece) > room:
                rows.append([])
                room = row_length
            rows[-1].append((number, piece))
            room -= len(piece)
    return rows


def shard_files(folder: Path) -> list[Path]:
    """The shards of a folder, in order."""
    entries = json.loads((folder / "index.json").read_text())["shards"]
    return [folder / entry["zip_data"]["basename"] for entry in entries]
