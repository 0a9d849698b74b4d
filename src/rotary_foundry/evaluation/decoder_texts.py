"""Held-out text for decoders: documents of a prepared corpus, or one text file, and filler for prompts made of it."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rotary_foundry.data_prep.inspection.held_out_texts import Text, check_held_out, describe, held_out
from rotary_foundry.evaluation.suites import DecoderSuiteConfig
from rotary_foundry.utils.errors import DataError

if TYPE_CHECKING:
    from rotary_foundry.evaluation.models import Encoded

# A sentence or a line with the blanks after it; of a longer one as many whole words as fit, or a part of a word.
PIECE = re.compile(r"\S.{0,240}?(?:[.!?]\s+|[。！？]\s*|\n\s*)|\S.{0,240}(?:\s+|$)|\S{1,240}\s*")
BETWEEN = "\n\n"  # documents


def check_texts(_: Path, config: DecoderSuiteConfig) -> None:
    """Check that the data have text. This is the `check` of suites, which is called before the first one runs.

    Raises:
        DataError: the data have no text.
    """
    if Path(config.data).is_file():
        read_texts(config)
    else:
        check_held_out(config.data)


def read_texts(config: DecoderSuiteConfig, at_least: int = 1) -> list[Text]:
    """Read held-out documents of each source, or a text file as one document.

    Args:
        at_least: the least content tokens per document, by the corpus' own tokenizer; not applied to a file.

    Raises:
        DataError: the data is missing, damaged, not text or too short.
    """
    path = Path(config.data)
    if not path.is_file():
        return held_out(config.data, config.documents, config.seed, at_least)
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as text in UTF-8: {error}") from None
    if not text:
        raise DataError(f"{path}: the file is empty; expected text")
    return [Text(path.stem, path.name, text, len(text.split()))]


def describe_texts(config: DecoderSuiteConfig, texts: list[Text]) -> dict:
    """Describe the data of a result."""
    if not Path(config.data).is_file():
        return describe(config.data, texts)
    return {"file": config.data, "bytes": sum(len(text.text.encode()) for text in texts)}


@dataclass(frozen=True)
class Filler:
    """Text in pieces, with each piece's number of tokens within the text. It is read in a circle, from any piece on."""

    pieces: list[str]
    sizes: NDArray[np.int64]  # [pieces], tokens
    begins: list[int]  # the first pieces of documents and paragraphs

    @classmethod
    def of(cls, encode: Callable[[str], "Encoded"], texts: Sequence[str]) -> "Filler":
        """Cut texts into pieces, and count their tokens with a function that encodes text."""
        pieces, sizes, begins = [], [], []
        for text in texts:
            whole = text.strip() + BETWEEN
            of_text = PIECE.findall(whole)
            paragraphs = [index + 1 for index, piece in enumerate(of_text[:-1]) if piece.count("\n") > 1]
            begins += [len(pieces) + index for index in [0, *paragraphs]]
            ends = np.cumsum([len(piece) for piece in of_text])
            sizes += np.diff(np.searchsorted(encode(whole).spans[:, 0], ends), prepend=0).tolist()
            pieces += of_text
        return cls(pieces, np.array(sizes, np.int64), begins)

    def stretch(self, start: int, tokens: int) -> tuple[list[str], NDArray[np.int64]]:
        """Return as many pieces from `start` on as fit into `tokens` tokens, and their sizes.

        Raises:
            ValueError: all pieces together have fewer tokens.
        """
        if self.sizes.sum() < tokens:
            raise ValueError(f"{self.sizes.sum():,} tokens")
        order = np.roll(np.arange(len(self.pieces)), -start)
        order = order[: int(np.searchsorted(np.cumsum(self.sizes[order]), tokens, side="right"))]
        return [self.pieces[index] for index in order], self.sizes[order]
