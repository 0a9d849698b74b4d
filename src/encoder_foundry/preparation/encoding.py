"""Texts to ids, as preparation wants them: flat, with all cores, and with memory that no text can exceed.

`tokenizers` takes 120 bytes of memory for each character that it is given at once. So a text of more than PIECE
characters goes through in pieces, and a batch in groups of pieces: 100 MB of text in one document take 50 MB beside the
text and its ids. A piece ends before a blank that follows something else. There a word of GPT-2's pattern ends, so
for a tokenizer that is trained here the ids are those of the whole text; some others (Llama's) mark the beginning of a
text, with a token more at such a seam. What has no blank within PIECE characters is cut all the same, and may have
a token or two more for it.

Special tokens that a text spells are read as text: documentation that mentions [MASK] must not put a mask into the
training data. The saved tokenizer does read them, as fill-mask needs.

The ids leave `tokenizers` as Python lists, whatever one does; `array.fromlist` takes them at 19 ns a token, half of
what `np.fromiter` or an array for each document need.
"""

import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from encoder_foundry.data.special_tokens import padded, special_ids
from encoder_foundry.errors import DataError

PIECE = 2**18  # characters of a text that are encoded at once, or up to twice as many if need be
GROUP = 2**21  # characters after which a batch is passed on
SEAM = re.compile(r"(?<=\S)[ \t\r\n]")


class CorpusTokenizer:
    """A tokenizer that was saved here, as preparation uses it: text to content ids and back, and nothing else."""

    def __init__(self, directory: Path) -> None:
        self.tokenizer = open_tokenizer(directory)
        ids = special_ids(directory, self.tokenizer)
        self.cls_id, self.sep_id = ids["cls_token"], ids["sep_token"]
        largest = max(self.tokenizer.get_vocab(with_added_tokens=True).values())
        self.vocab_size = padded(largest + 1)  # that of a model for it

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Content ids of all texts end to end, uint32 `[tokens]`, and how many each has, int64 `[texts]`."""
        return encode(self.tokenizer, texts)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of content ids; exactly, for a tokenizer that is trained here."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)


def open_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer in a directory, set to read every text whole and as nothing but text.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    path = Path(directory) / "tokenizer.json"
    if not path.is_file():
        raise DataError(f"{path}: no such file; a Hugging Face fast tokenizer has one")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise DataError(f"{path}: cannot be read as a tokenizer: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # "[MASK]" in a text is six characters, not a mask
    return tokenizer


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Ids of all texts end to end, uint32 `[tokens]`, and how many each has, int64 `[texts]`; no special tokens."""
    ids = array("I")
    lengths = np.zeros(len(texts), dtype=np.int64)
    for group in _groups(texts):
        encodings = tokenizer.encode_batch_fast([piece for _, piece in group], add_special_tokens=False)
        for (text, _), encoding in zip(group, encodings, strict=True):
            lengths[text] += len(encoding)
            ids.fromlist(encoding.ids)
    return np.asarray(ids, dtype=np.uint32), lengths


def _groups(texts: Sequence[str]) -> Iterator[list[tuple[int, str]]]:
    """(number of the text, piece of it) of all texts in order, as many at a time as make GROUP characters."""
    group: list[tuple[int, str]] = []
    size = 0
    for number, text in enumerate(texts):
        for piece in pieces(text, PIECE):
            group.append((number, piece))
            size += len(piece)
            if size >= GROUP:
                yield group
                group, size = [], 0
    if group:
        yield group


def pieces(text: str, size: int) -> Iterator[str]:
    """The text in pieces of `size` to twice as many characters, the last shorter, cut before blanks if it can be."""
    start = 0
    while len(text) - start > size:
        seam = SEAM.search(text, start + size, start + 2 * size)
        end = seam.start() if seam else start + 2 * size
        yield text[start:end]
        start = end
    if start < len(text) or not text:
        yield text[start:]
