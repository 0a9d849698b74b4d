"""Texts to ids, as preparation wants them: flat, each word encoded once, and with memory that no text can exceed.

The words of a text (words.py) are looked up among those seen before, and `tokenizers` is asked for the new ones.

`tokenizers` takes 120 bytes of memory for each character that it is given at once. So a text of more than PIECE
characters goes through in pieces, and a batch in groups of pieces: 100 MB of text in one document take 50 MB beside the
text and its ids. A piece ends before a blank that follows something else. There a word of GPT-2's pattern ends, so
for a tokenizer that is trained here the ids are those of the whole text; some others (Llama's) mark the beginning of a
text, with a token more at such a seam. What has no blank within PIECE characters is cut all the same, and may have
a token or two more for it.

Special tokens that a text spells are read as text: documentation that mentions [MASK] must not put a mask into the
training data. The saved tokenizer does read them, as fill-mask needs.

The ids leave `tokenizers` as Python lists, whatever one does; `array` takes them at 19 ns a token, half of what
`np.fromiter` needs.
"""

import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from rotary_foundry.data.rows import FRAME
from rotary_foundry.data.special_tokens import padded, read_tokenizer, special_ids
from rotary_foundry.data_prep.words import words_of

PIECE = 2**18  # characters of a text that are encoded at once, or up to twice as many if need be
GROUP = 2**20  # characters after which a batch is passed on
KEPT = 2**20  # characters in words that are remembered; in a dictionary each word needs some 150 bytes more
SEAM = re.compile(r"(?<=\S)[ \t\r\n]")


class CorpusTokenizer:
    """A tokenizer that was saved here, as preparation uses it: text to content ids and back, and nothing else."""

    def __init__(self, directory: Path) -> None:
        self.tokenizer = open_tokenizer(directory)
        self._encoder = Encoder(self.tokenizer)
        self.frame = FRAME.ids(special_ids(directory, self.tokenizer))
        largest = max(self.tokenizer.get_vocab(with_added_tokens=True).values())
        self.vocab_size = padded(largest + 1)  # that of a model for it

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Content ids of all texts end to end, uint32 `[tokens]`, and how many each has, int64 `[texts]`."""
        return self._encoder.encode(texts)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of content ids; exactly, for a tokenizer that is trained here."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)


def open_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer in a directory, set to read every text whole and as nothing but text.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    tokenizer = read_tokenizer(directory)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # "[MASK]" in a text is six characters, not a mask
    return tokenizer


class Encoder:
    """Encodes texts, and remembers the ids of their words."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._words = words_of(tokenizer)
        self._ids: dict[str, bytes] = {}  # of each word, uint32
        self._kept = 0  # characters in these words

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts end to end, uint32 `[tokens]`, and how many each has, int64 `[texts]`; no special tokens."""
        tokens = bytearray()
        lengths = np.zeros(len(texts), dtype=np.int64)
        for group in _groups(texts):
            if self._kept > KEPT:
                self._ids.clear()
                self._kept = 0
            words = [self._words(piece) for _, piece in group]
            self._learn(list(set().union(*words) - self._ids.keys()))
            for (text, _), of_piece in zip(group, words, strict=True):
                ids = b"".join(map(self._ids.__getitem__, of_piece))
                lengths[text] += len(ids) // 4
                tokens += ids
        return np.frombuffer(tokens, dtype=np.uint32), lengths

    def _learn(self, words: list[str]) -> None:
        encodings = self._tokenizer.encode_batch_fast(words, add_special_tokens=False)
        for word, encoding in zip(words, encodings, strict=True):
            self._ids[word] = array("I", encoding.ids).tobytes()
        self._kept += sum(map(len, words))


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
