"""The table that preparation ends with."""

from pathlib import Path

from rich import box
from rich.table import Table

from encoder_foundry.data.rows import Manifest
from encoder_foundry.preparation.corpus import SPLITS
from encoder_foundry.preparation.statistics import Counts, Statistics


def table(out: Path) -> Table:
    """The sources and splits of a prepared folder: documents, megabytes, tokens, rows and fill for each row length.

    Raises:
        DataError: part of the folder is missing or broken.
    """
    statistics = Statistics.read(out)
    row_lengths = statistics.configuration["row_lengths"]
    vocabulary = f"{statistics.vocab_size:,} tokens in the vocabulary"
    entropy = f"held-out unigram entropy {statistics.unigram_entropy:.3f} nats a token"
    result = Table(title=str(out), caption=f"{vocabulary}; {entropy}", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("source", "split"):
        result.add_column(heading)
    for heading in ("documents", "MB", "tokens", *(f"rows of {row_length:,}" for row_length in row_lengths)):
        result.add_column(heading, justify="right")
    for split in SPLITS:
        for name, source in statistics.sources.items():
            counts: Counts = getattr(source, split)
            sizes = f"{counts.documents:,}", f"{counts.bytes / 1e6:.2f}", f"{counts.tokens:,}"
            manifests = [Manifest.read(out / name / str(row_length) / split) for row_length in row_lengths]
            rows = [f"{manifest.rows:,} ({manifest.fill:.1%})" for manifest in manifests]
            result.add_row(name, split, *sizes, *rows)
    return result
