"""Write a task's documents as shards of every row length, in one pass and with bounded memory.

The documents of a source with `length_bands` are tokenised once and then divided: each band has shards, a table of
documents and counts of its own, as if it were a source.
"""

import shutil
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from rotary_foundry.data.packing import Packer, gives_up_last
from rotary_foundry.data.rows import Row, token_dtype
from rotary_foundry.data.shard_writer import ShardWriter
from rotary_foundry.data.target_context import count_longer
from rotary_foundry.data_prep.encoding import CorpusTokenizer
from rotary_foundry.data_prep.length_bands import band_names, bands_of
from rotary_foundry.data_prep.work import Work, read_documents, read_hashes
from rotary_foundry.utils import object_store


def write_shards(work: Work, rank: int, source: str, split: str, number: int, files: list[int]) -> None:
    """Tokenise document files, pack them for each row length, and write them as part `number` of a source's split."""
    config, directory = work.config, work.whole / "tokenizer"
    tokenizer = _opened(directory, config.word_starts, directory.stat().st_mtime_ns)
    bounds = config.sources[source].length_bands
    bands = [_Part(work, name, split, number, tokenizer) for name in band_names(source, bounds)]
    frequencies, unknown = np.zeros(tokenizer.vocab_size, dtype=np.int64), 0
    documents, special = KeptDocuments(work, split, files), 0
    for ids, texts in documents:
        special += tokenizer.count_spelled(texts)
        tokens, lengths, word_starts = tokenizer.encode_words(texts)
        frequencies += np.bincount(tokens, minlength=len(frequencies))
        unknown += int(np.count_nonzero(tokens == tokenizer.unknown))
        sizes = np.array([len(text.encode()) for text in texts])
        band_of = bands_of(lengths, bounds)
        for number_of_band in np.unique(band_of):
            there = band_of == number_of_band
            of_tokens = slice(None) if there.all() else np.repeat(there, lengths)
            begin = None if word_starts is None else word_starts[of_tokens]
            its_ids = [id_ for id_, its in zip(ids, there, strict=True) if its]
            bands[number_of_band].add(its_ids, sizes[there], tokens[of_tokens], lengths[there], begin)
    counts = {"left_out": documents.left_out, "special_tokens": special, "unknown": unknown}
    work.write_json("written", rank, counts | {"bands": [band.close() for band in bands]})
    if split == "validation":
        np.save(work.folder / "written" / f"{rank:05d}.npy", frequencies)


class KeptDocuments:
    """The documents of a part's files without duplicates, and without held-out documents beyond `validation`.

    Iterating yields batches of ids and texts, and counts in `left_out` the held-out documents beyond `validation`.
    """

    def __init__(self, work: Work, split: str, files: list[int]) -> None:
        self._work, self._files = work, files
        numbered = split == "validation" and work.config.validation >= 1
        self._chosen = _smallest_hashes(work, files) if numbered else None
        self.left_out = 0

    def __iter__(self) -> Iterator[tuple[list[str], list[str]]]:
        for file in self._files:
            for batch in read_documents(self._work.file(file), self._work.dropped(file)):
                rows = [row for row in batch if self._chosen is None or row[2] in self._chosen]
                self.left_out += len(batch) - len(rows)
                if rows:
                    yield [row[0] for row in rows], [row[1] for row in rows]


@lru_cache(maxsize=1)
def _opened(directory: Path, word_starts: str | None, _as_of: int) -> CorpusTokenizer:
    """Open a tokenizer, and cache it for the next tasks of this process."""
    return CorpusTokenizer(directory, word_starts)


def _smallest_hashes(work: Work, files: list[int]) -> set[bytes]:
    """Return the smallest hashes of held-out documents, as many as `validation` says."""
    none = np.empty((0, 2), np.uint64)  # a part may have no held-out document
    hashes = np.concatenate(
        [np.delete(np.concatenate([none, *read_hashes(work.file(file))]), work.dropped(file), axis=0) for file in files]
    )
    smallest = np.lexsort((hashes[:, 1], hashes[:, 0]))[: int(work.config.validation)]
    return {row.astype(">u8").tobytes() for row in hashes[smallest]}


class _Part:
    """Writes the shards of all row lengths, and the table of documents, of one part and split of a source."""

    def __init__(self, work: Work, source: str, split: str, number: int, tokenizer: CorpusTokenizer) -> None:
        self._named = {"source": source, "split": split, "number": number}
        lengths = work.config.row_lengths
        self._shards = [_Shards(work, source, split, number, row_length, tokenizer) for row_length in lengths]
        folder, part = work.place(source, number)
        self._table = DocumentTable(work.whole / folder / "documents" / split / f"{part}.parquet")

    def add(
        self,
        ids: list[str],
        sizes: np.ndarray,
        tokens: np.ndarray,
        lengths: np.ndarray,
        word_starts: np.ndarray | None,
    ) -> None:
        """Add documents: ids, bytes and content tokens of each, and the ids of their tokens one after the other."""
        numbers = np.arange(self._table.documents, self._table.documents + len(ids), dtype=np.uint32)
        for rows in self._shards:
            rows.add(tokens, lengths, numbers, word_starts)
        self._table.add(ids, sizes, lengths)

    def close(self) -> dict:
        """Finish the files, and return the counts."""
        self._table.close()
        rows = {str(rows.row_length): rows.close() for rows in self._shards}
        counts = {key: getattr(self._table, key) for key in ("documents", "bytes", "tokens")}
        return self._named | counts | {"rows": rows}


class _Shards:
    """Writes the shards of one part, split and row length."""

    def __init__(
        self, work: Work, source: str, split: str, number: int, row_length: int, tokenizer: CorpusTokenizer
    ) -> None:
        self.row_length = row_length
        self.keep_all = split == "validation"
        self._packer = Packer(row_length, tokenizer.frame, work.config.stride)
        place, part = work.place(source, number)
        folder, word_starts = f"{place}/{row_length}/{split}/{part}", work.config.word_starts is not None
        self._writer = StoredShards(work, folder, token_dtype(tokenizer.vocab_size), word_starts=word_starts)
        self._counts = {"rows": 0, "documents": 0, "tokens": 0, "given_up": 0}
        self._longer = count_longer(np.zeros(0), row_length)
        self._last: Row | None = None  # not written yet, because the part's last row may be left out

    def add(self, tokens: np.ndarray, lengths: np.ndarray, numbers: np.ndarray, word_starts: np.ndarray | None) -> None:
        self._write(self._packer.add(tokens, lengths, numbers, word_starts))

    def close(self) -> dict:
        self._write(self._packer.finish())
        if self._last is not None:
            so_far = self._counts["rows"], self._counts["tokens"]
            if self.keep_all or not gives_up_last(*so_far, len(self._last.tokens), self.row_length):
                self._put(self._last)
            else:
                self._counts["given_up"] = len(self._last.tokens)
        self._writer.finish()
        return self._counts | {"longer": self._longer.tolist()}

    def _write(self, rows: Iterator[Row]) -> None:
        for row in rows:
            if self._last is not None:
                self._put(self._last)
            self._last = row

    def _put(self, row: Row) -> None:
        self._writer.write(row)
        self._counts["rows"] += 1
        self._counts["documents"] += len(row.lengths)
        self._counts["tokens"] += len(row.tokens)
        self._longer += count_longer(row.lengths, self.row_length)


class StoredShards(ShardWriter):
    """Writes the shards of a folder of `work.whole`; at the end, moves them to the object store if `out` is on one."""

    def __init__(self, work: Work, folder: str, dtype: np.dtype, **columns: Any):
        shutil.rmtree(work.whole / folder, ignore_errors=True)  # left by an interrupted attempt
        super().__init__(work.whole / folder, dtype, **columns)
        out = work.config.out
        self._remote = f"{out}/{folder}" if object_store.is_remote(out) else None

    def finish(self) -> None:
        super().finish()
        if self._remote is not None:
            object_store.upload(self.folder, self._remote)
            for shard in self.folder.glob("shard.*"):
                shard.unlink()


class DocumentTable:
    """Writes the parquet file that lists a part's documents by the numbers used in rows.

    Args:
        path: the path of the file.
        responses: whether it also has the number of response tokens, as for conversations.
    """

    def __init__(self, path: Path, responses: bool = False) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path.parent.mkdir(parents=True, exist_ok=True)
        counts = ["bytes", "tokens", *(["responses"] if responses else [])]
        self._schema = pa.schema([("id", pa.string()), *((name, pa.int64()) for name in counts)])
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd", use_dictionary=False)
        self.documents = self.bytes = self.tokens = 0

    def add(self, ids: list[str], sizes: np.ndarray, tokens: np.ndarray, *responses: np.ndarray) -> None:
        """Add documents: ids, bytes, content tokens and, for conversations, response tokens, int64 `[documents]`."""
        import pyarrow as pa

        self._writer.write_table(pa.table([ids, sizes, tokens, *responses], schema=self._schema))
        self.documents += len(ids)
        self.bytes += int(sizes.sum())
        self.tokens += int(tokens.sum())

    def close(self) -> None:
        self._writer.close()
