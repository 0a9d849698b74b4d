"""The table that preparation prints at its end."""

from rich import box
from rich.console import Group
from rich.table import Table

from rotary_foundry.data_prep.statistics import Counts, Statistics
from rotary_foundry.data_prep.work import SPLITS


def table(title: str, statistics: Statistics) -> Group:
    """Make a table of sources and splits: documents, megabytes, tokens, and rows and fill for each row length.

    Below the table are the numbers of documents that were left out of each source, by reason.
    """
    row_lengths = statistics.configuration["row_lengths"]
    vocabulary = f"{statistics.vocab_size:,} tokens in the vocabulary"
    entropy = f"held-out unigram entropy {statistics.unigram_entropy:.3f} nats a token"
    result = Table(title=title, caption=f"{vocabulary}; {entropy}", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("source", "split"):
        result.add_column(heading)
    for heading in ("documents", "MB", "tokens", *(f"rows of {row_length:,}" for row_length in row_lengths)):
        result.add_column(heading, justify="right")
    for split in SPLITS:
        for name, source in statistics.sources.items():
            counts: Counts = getattr(source, split)
            sizes = f"{counts.documents:,}", f"{counts.bytes / 1e6:.2f}", f"{counts.tokens:,}"
            rows = [f"{counts.rows[str(length)]:,} ({counts.fill[str(length)]:.1%})" for length in row_lengths]
            result.add_row(name, split, *sizes, *rows)
    return Group(result, *_left_out(statistics))


def _left_out(statistics: Statistics) -> list[str]:
    lines = []
    for name, source in statistics.sources.items():
        reasons = [f"{documents:,} {reason}" for reason, documents in source.left_out.items()]
        if reasons:
            lines.append(f"  {name}: left out {', '.join(reasons)}")
    return lines
