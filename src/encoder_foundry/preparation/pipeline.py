"""A corpus to packed shards: gather, split, tokenizer, tokenise once, pack for every row length, write.

The result is a folder:

    out/tokenizer/                                 a Hugging Face fast tokenizer
    out/<source>/<row_length>/<split>/             MDS shards (zstd, hashed), index.json, manifest.json
    out/statistics.json                            counts, unigram entropy, and what all this was made from

Two decisions. The folder appears whole or not at all: everything is written in a hidden sibling and renamed at the
end, so nobody has to tell finished shards from those of an interrupted run. And nothing is ever overwritten: a
folder made from the same settings and the same texts is left as it is, any other is refused.

The corpus and its tokens are held in memory.
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from encoder_foundry.data.packing import cut, drop_remainder, pack
from encoder_foundry.data.rows import SHARD_HASH, Manifest, columns, encode_row, fingerprint, token_dtype
from encoder_foundry.errors import DataError
from encoder_foundry.preparation.config import CorpusConfig
from encoder_foundry.preparation.corpus import SPLITS, Corpus, gather
from encoder_foundry.preparation.statistics import Counts, SourceStatistics, Statistics, unigram_entropy
from encoder_foundry.preparation.tokenizer import CorpusTokenizer, open_fast, save_copy, save_trained, train_tokenizer

FORMAT = 1  # raised whenever the same texts and settings would give other shards

log = logging.getLogger(__name__)

Tokens = dict[tuple[str, str], list[np.ndarray]]  # (source, split) → content ids of each document


def prepare(config: CorpusConfig) -> None:
    """Make the shards that `config` describes, unless they are there.

    Raises:
        DataError: a source, a tokenizer or `config.out` that cannot be used; `config.out` is then as it was.
    """
    out = Path(config.out)
    made_of = settings(config)
    there = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if there:
        _refuse_other_settings(out, made_of)
    if config.tokenizer.path:
        open_fast(Path(config.tokenizer.path))
    with _timed("gathered the sources"):
        corpus = gather(config.sources, config.validation)
    if there:
        if Statistics.read(out).corpus != corpus.digest:
            raise _refusal(out, "other documents: the sources have changed since")
        log.info(f"{out} is complete and of this configuration and corpus: nothing to do")
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{out.name}-partial-", dir=out.parent) as partial:
            whole = Path(partial, "whole")  # a folder of its own, for mkdtemp's is closed to other users
            whole.mkdir()
            _make(config, made_of, corpus, whole)
            os.rename(whole, out)
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error}") from error


def settings(config: CorpusConfig) -> dict:
    """What the shards follow from, beside the texts. Paths are not in it: the same texts may come from elsewhere."""
    tokenizer = config.tokenizer
    return {
        "format": FORMAT,
        "sources": list(config.sources),
        "tokenizer": asdict(tokenizer.train) if tokenizer.train else fingerprint(tokenizer.path),
        "row_lengths": sorted(config.row_lengths),
        "validation": config.validation,
    }


def _refuse_other_settings(out: Path, wanted: dict) -> None:
    try:
        there = Statistics.read(out).configuration
    except DataError as error:
        raise _refusal(out, f"something else ({error})") from None
    differing = [key for key in wanted if wanted[key] != there.get(key)]
    if differing:
        raise _refusal(out, f"shards made with other values of {', '.join(differing)}")


def _refusal(out: Path, what: str) -> DataError:
    return DataError(f"{out}: holds {what}; delete it, or choose another folder with out=…")


def _make(config: CorpusConfig, made_of: dict, corpus: Corpus, out: Path) -> None:
    """Write tokenizer, shards and statistics into the empty folder `out`."""
    with _timed("made the tokenizer"):
        _write_tokenizer(config, corpus, out / "tokenizer")
    tokenizer = CorpusTokenizer(out / "tokenizer")
    tokens: Tokens = {}
    with _timed("tokenised"):
        for source in corpus.sources:
            for split in SPLITS:
                tokens[source.name, split] = tokenizer.encode([document.text for document in source.documents[split]])
    with _timed("packed and wrote the rows"):
        for (source, split), documents in tokens.items():
            for row_length in config.row_lengths:
                _write_rows(documents, tokenizer, out, source, split, row_length)
    _statistics(made_of, corpus, tokenizer, tokens).write(out)


def _write_tokenizer(config: CorpusConfig, corpus: Corpus, directory: Path) -> None:
    if config.tokenizer.path:
        save_copy(Path(config.tokenizer.path), directory, max(config.row_lengths))
        return
    texts = (document.text for source in corpus.sources for document in source.documents["train"])
    trained = train_tokenizer(texts, config.tokenizer.train.vocab_size)
    save_trained(trained, directory, max(config.row_lengths))


def _write_rows(
    documents: list[np.ndarray], tokenizer: CorpusTokenizer, out: Path, source: str, split: str, row_length: int
) -> None:
    """Pack content ids into rows and write them with their manifest to `out/<source>/<row_length>/<split>/`."""
    from streaming import MDSWriter  # brings torch with it

    directory = out / source / str(row_length) / split
    dtype = token_dtype(tokenizer.vocab_size)
    pieces = list(cut(documents, row_length, tokenizer.cls_id, tokenizer.sep_id))
    packed = pack(pieces, row_length)
    rows = documents_in_rows = tokens = 0
    with MDSWriter(out=str(directory), columns=columns(dtype), compression="zstd", hashes=[SHARD_HASH]) as writer:
        for row in drop_remainder(packed, row_length) if split == "train" else packed:
            writer.write(encode_row(row, dtype))
            rows += 1
            documents_in_rows += len(row)
            tokens += sum(map(len, row))
    fill = tokens / (rows * row_length)
    Manifest(source, split, row_length, rows, documents_in_rows, tokens, fill, tokenizer.fingerprint).write(directory)
    if left_out := sum(map(len, pieces)) - tokens:
        log.info(f"{source}: left out {left_out:,} tokens, a last row of {row_length:,} that could not be filled")


def _statistics(made_of: dict, corpus: Corpus, tokenizer: CorpusTokenizer, tokens: Tokens) -> Statistics:
    held_out = [document for (_, split), documents in tokens.items() if split == "validation" for document in documents]
    sources = {}
    for source in corpus.sources:
        counts = {
            split: Counts(
                documents=len(source.documents[split]),
                bytes=sum(len(document.text.encode()) for document in source.documents[split]),
                tokens=sum(map(len, tokens[source.name, split])),
            )
            for split in SPLITS
        }
        sources[source.name] = SourceStatistics(source.near_empty, source.duplicates, **counts)
    return Statistics(
        configuration=made_of,
        corpus=corpus.digest,
        tokenizer=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        unigram_entropy=unigram_entropy(held_out, tokenizer.vocab_size),
        sources=sources,
    )


@contextmanager
def _timed(what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    log.info(f"{what} in {time.perf_counter() - start:.1f} s")
