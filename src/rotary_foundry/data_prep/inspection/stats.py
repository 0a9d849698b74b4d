"""`data stats`: the size of each source of a corpus, and the lengths of its documents.

The figures come from the manifests and the tables of documents, so that terabytes take seconds. A corpus without such
tables is read completely, and each piece in a row is then counted as a document.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from rotary_foundry.data.rows import FRAME, Manifest
from rotary_foundry.data_prep.conversations.conversation_counts import ConversationCounts, loss_table
from rotary_foundry.data_prep.inspection.source_folders import Folder, find_folders
from rotary_foundry.data_prep.work import SPLITS
from rotary_foundry.utils.errors import DataError
from rotary_foundry.utils.wording import WIDTH

BINS = 32  # bin n holds documents of 2^n to 2^(n+1) - 1 tokens
BAR = 30  # characters of the longest bar


@dataclass
class Documents:
    """Counts of the documents of one source and split."""

    count: int = 0
    bytes: int | None = None  # of UTF-8 text; None if unknown
    tokens: int = 0  # content tokens
    by_length: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))  # documents in each bin
    tokens_by_length: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))  # tokens in them

    def add(self, lengths: NDArray[np.int64]) -> None:
        """Count documents by their content tokens."""
        # frexp is exact; a logarithm could round 2^n - 1 up. Documents of no tokens are counted with those of one.
        bins = np.frexp(np.maximum(lengths, 1).astype(np.float64))[1] - 1
        self.count += len(lengths)
        self.tokens += int(lengths.sum())
        self.by_length += np.bincount(bins, minlength=BINS)
        self.tokens_by_length += np.bincount(bins, weights=lengths, minlength=BINS).astype(np.int64)


@dataclass
class CorpusStats:
    """The contents of a corpus, by source and split."""

    documents: dict[tuple[str, str], Documents]
    rows: dict[tuple[str, str], dict[int, Manifest]]  # by row length
    whole: bool  # True if `documents` counts documents, False if it counts their pieces
    conversations: dict[str, ConversationCounts]  # of the training split, by source

    def share(self, source: str, split: str) -> float:
        """Return a source's share of the tokens of a split."""
        there = sum(documents.tokens for (_, of), documents in self.documents.items() if of == split)
        return self.documents[source, split].tokens / max(1, there)

    @property
    def row_lengths(self) -> list[int]:
        return sorted({row_length for of_source in self.rows.values() for row_length in of_source})


def gather(directory: str | Path) -> CorpusStats:
    """Count the corpus in and below a directory.

    Raises:
        DataError: the directory has no shards, or several corpora; or a manifest, an index or a table of documents is
            missing or broken.
    """
    rows: dict[tuple[str, str], dict[int, Manifest]] = defaultdict(dict)
    folders: dict[tuple[str, str], Path] = {}
    for path in find_folders(directory):
        manifest = Manifest.read(path)
        key = manifest.source, manifest.split
        if manifest.row_length in rows[key]:
            raise DataError(f"{directory}: contains more than one corpus, {path} and others; give the folder of one")
        rows[key][manifest.row_length] = manifest
        if manifest.row_length == max(rows[key]):  # the longest rows cut the fewest documents
            folders[key] = path
    keys = sorted(rows, key=lambda key: (SPLITS.index(key[1]), key[0]))
    whole = all(Folder(folders[key]).tables() for key in keys)
    documents = {key: _from_tables(Folder(folders[key])) if whole else _from_rows(folders[key]) for key in keys}
    conversations = {
        source: _conversations(Folder(folders[source, split]))
        for source, split in keys
        if whole and split == "train" and any(manifest.responses for manifest in rows[source, split].values())
    }
    return CorpusStats(documents, {key: dict(sorted(rows[key].items())) for key in keys}, whole, conversations)


def _conversations(folder: Folder) -> ConversationCounts:
    tables = [folder.documents(part, ["tokens", "responses"]) for part in folder.tables()]
    tokens, responses = (
        np.concatenate([table[column].to_numpy() for table in tables]) for column in ("tokens", "responses")
    )
    return ConversationCounts.of(tokens, responses, {}, {})


def _from_tables(folder: Folder) -> Documents:
    documents = Documents(bytes=0)
    for part in folder.tables():
        table = folder.documents(part, ["bytes", "tokens"])
        documents.bytes += pc.sum(table["bytes"], min_count=0).as_py()
        documents.add(table["tokens"].to_numpy())
    return documents


def _from_rows(path: Path) -> Documents:
    from rotary_foundry.data_prep.inspection.shard_folder import ShardFolder

    folder, documents = ShardFolder(path), Documents()
    for shard in folder.shards:
        for sample in folder.rows(shard):
            documents.add(sample["lengths"].astype(np.int64) - FRAME.slots)
    return documents


def print_stats(stats: CorpusStats, console: Console | None = None) -> None:
    """Print tables: sources and splits, lengths of the training documents, and conversations' shares of the loss."""
    console = console or Console(highlight=False, width=max(WIDTH, Console().width))
    console.print(_sources_table(stats))
    console.print(_lengths_table(stats))
    if stats.conversations:
        console.print(loss_table(stats.conversations, "train"))


def _sources_table(stats: CorpusStats) -> Table:
    what = "documents" if stats.whole else "pieces"
    caption = "percentages beside rows: the share of their slots that holds tokens"
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=caption)
    table.add_column("source")
    table.add_column("split")
    for heading in (what, "MB", "tokens", "share", *(f"rows of {length:,}" for length in stats.row_lengths)):
        table.add_column(heading, justify="right")
    for (source, split), documents in stats.documents.items():
        manifests = [stats.rows[source, split].get(length) for length in stats.row_lengths]
        table.add_row(
            source,
            split,
            f"{documents.count:,}",
            "–" if documents.bytes is None else f"{documents.bytes / 1e6:,.2f}",
            f"{documents.tokens:,}",
            f"{stats.share(source, split):.1%}",
            *(f"{manifest.rows:,} ({manifest.fill:.1%})" if manifest else "–" for manifest in manifests),
        )
    return table


def _lengths_table(stats: CorpusStats) -> Table:
    """Make the table of training documents of all sources by length; of held-out documents if there are no others."""
    split = "train" if any(of == "train" for _, of in stats.documents) else "validation"
    of_split = [documents for (_, of), documents in stats.documents.items() if of == split]
    counts = sum(documents.by_length for documents in of_split)
    tokens = sum(documents.tokens_by_length for documents in of_split)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(f"tokens in a {'document' if stats.whole else 'piece'} ({split})", justify="right")
    for heading in ("documents" if stats.whole else "pieces", "share", "tokens", "share"):
        table.add_column(heading, justify="right")
    table.add_column("", no_wrap=True)
    filled = np.flatnonzero(counts)
    for bin_ in range(filled[0], filled[-1] + 1) if len(filled) else ():
        table.add_row(
            f"{1 << bin_:,} – {(2 << bin_) - 1:,}",
            f"{counts[bin_]:,}",
            f"{counts[bin_] / counts.sum():.1%}",
            f"{tokens[bin_]:,}",
            f"{tokens[bin_] / max(1, tokens.sum()):.1%}",
            "█" * round(BAR * tokens[bin_] / max(1, tokens.max())),
        )
    return table
