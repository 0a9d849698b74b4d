"""What a tokenizer makes of a corpus' held-out text: tokens to a word and to a byte, beside a second tokenizer.

Fewer tokens for the same text are a shorter row and a cheaper run, so this is what tells whether a tokenizer suits a
language or a domain. Held-out text, because a tokenizer that was trained on the corpus has seen the rest. The text is
decoded from the longest rows, where the fewest documents are cut; both tokenizers are given the same pieces. A word is
what stands between blanks: in a script that has none between words, such as Chinese, only tokens to a byte mean much.
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
    """What the held-out text of a source comes to."""

    source: str
    words: int = 0
    bytes: int = 0  # of UTF-8
    ours: int = 0  # tokens, by the corpus' own tokenizer
    theirs: int = 0  # tokens, by the second

    def add(self, texts: list[str], ours: int, theirs: int) -> None:
        """Count texts and what each tokenizer makes of them."""
        self.words += sum(len(text.split()) for text in texts)
        self.bytes += sum(len(text.encode()) for text in texts)
        self.ours += ours
        self.theirs += theirs


def measure(directory: Path, against: Path) -> list[Fertility]:
    """The fertility of the tokenizer of a prepared corpus, and of the one in `against`, by source and last of all.

    Raises:
        DataError: no held-out rows or no tokenizer in `directory`, or no tokenizer in `against`.
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
    """Print what `measure` finds, a line for each source and one for all."""
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
    """Each source, and the folder of its longest held-out rows."""
    for source in sorted(path for path in directory.glob("*/") if path.name != "tokenizer"):
        folders = [path.parent for path in source.glob("[0-9]*/validation/index.json")]
        if folders:
            yield source.name, max(folders, key=lambda folder: int(folder.parent.name))


def _documents(folder: ShardFolder) -> Iterator[np.ndarray]:
    """The documents in a folder of shards, in their frames."""
    for shard in folder.shards:
        for sample in folder.rows(shard):
            yield from decode_row(sample)
