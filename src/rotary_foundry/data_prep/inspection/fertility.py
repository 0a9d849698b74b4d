"""Measure a tokenizer's fertility on held-out text: tokens per word and per byte, compared with a second tokenizer.

Fewer tokens for the same text make a run cheaper, so fertility shows whether a tokenizer suits a language or a domain.
The text is held out because a tokenizer that was trained on the corpus has seen the rest. It is decoded from the
longest rows, which cut the fewest documents; both tokenizers encode the same pieces. Words are separated by blanks. In
a script without blanks between words, such as Chinese, only tokens per byte are meaningful.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from rotary_foundry.data.rows import content, decode_row
from rotary_foundry.data_prep.encoding import Encoder, open_tokenizer
from rotary_foundry.data_prep.inspection.shard_folder import ShardFolder
from rotary_foundry.data_prep.inspection.source_folders import local_folder
from rotary_foundry.utils.errors import DataError

DOCUMENTS_AT_A_TIME = 256  # decoded: at most some megabytes of text


@dataclass
class Fertility:
    """Counts of a source's held-out text: words, bytes, and tokens by each tokenizer."""

    source: str
    words: int = 0
    bytes: int = 0  # of UTF-8
    ours: int = 0  # tokens, by the corpus' own tokenizer
    theirs: int = 0  # tokens, by the second

    def add(self, texts: list[str], ours: int, theirs: int) -> None:
        """Add texts, and their numbers of tokens by each tokenizer."""
        self.words += sum(len(text.split()) for text in texts)
        self.bytes += sum(len(text.encode()) for text in texts)
        self.ours += ours
        self.theirs += theirs


def measure(directory: Path, against: Path) -> list[Fertility]:
    """Measure the tokenizer of a prepared corpus and the one in `against`: by source, and for all sources at the end.

    Raises:
        DataError: `directory` has no held-out rows or no tokenizer, or `against` has no tokenizer.
    """
    directory, against = local_folder(directory), local_folder(against)
    ours, theirs = open_tokenizer(directory / "tokenizer"), Encoder(open_tokenizer(against))
    every = Fertility("all")
    measured = []
    for source, folder in _held_out(directory):
        one = Fertility(source)
        documents = _documents(ShardFolder(folder))
        while ids := [content(document).tolist() for document in islice(documents, DOCUMENTS_AT_A_TIME)]:
            texts = ours.decode_batch(ids, skip_special_tokens=False)
            for total in one, every:
                total.add(texts, sum(map(len, ids)), int(theirs.encode(texts)[1].sum()))
        if one.words:
            measured.append(one)
    if not measured:
        raise DataError(f"{directory}: no held-out rows there; give a folder that `python data_prep` wrote")
    return [*measured, every]


def print_fertility(directory: Path, against: Path, console: Console | None = None) -> None:
    """Print the results of `measure`: one line for each source and one for all."""
    measured = measure(directory, against)
    names = f"this: {directory / 'tokenizer'}\nthat: {against}"
    table = Table(title="Held-out text in tokens", caption=names, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("source")
    for heading in (
        "MB",
        "words",
        "tokens a\nword, this",
        "tokens a\nword, that",
        "tokens a\nbyte, this",
        "tokens a\nbyte, that",
        "that ÷\nthis",
    ):
        table.add_column(heading, justify="right")
    for one in measured:
        if one is measured[-1]:
            table.add_section()
        table.add_row(
            one.source,
            f"{one.bytes / 1e6:,.2f}",
            f"{one.words:,}",
            *(f"{tokens / one.words:.2f}" for tokens in (one.ours, one.theirs)),
            *(f"{tokens / one.bytes:.3f}" for tokens in (one.ours, one.theirs)),
            f"{one.theirs / one.ours:.2f}",
        )
    (console or Console()).print(table)


def _held_out(directory: Path) -> Iterator[tuple[str, Path]]:
    """Yield each source and the folder of its longest held-out rows."""
    for source in sorted(path for path in directory.glob("*/") if path.name != "tokenizer"):
        folders = [path.parent for path in source.glob("[0-9]*/validation/index.json")]
        if folders:
            yield source.name, max(folders, key=lambda folder: int(folder.parent.name))


def _documents(folder: ShardFolder) -> Iterator[np.ndarray]:
    """Yield the documents in a folder of shards, each with its special tokens."""
    for shard in folder.shards:
        for sample in folder.rows(shard):
            yield from decode_row(sample)
