"""Encode texts as flat arrays of ids, encoding each different word once and using bounded memory.

The words of a text (words.py) are looked up in a dictionary of earlier words; `tokenizers` encodes only new ones.

`tokenizers` takes 120 bytes of memory for each character of one call. So a text of more than PIECE characters is
encoded in pieces, and a batch in groups of pieces: a document of 100 MB needs 50 MB besides the text and its ids. A
piece ends before a blank that follows a non-blank. A word of GPT-2's pattern ends there, so a tokenizer that is
trained here gives the same ids as for the whole text. Some others (SentencePiece's) mark the beginning of a text and
add a token at each cut. A text without a blank within PIECE characters is cut anyway, which may add a token or two.

Special tokens that occur in a text are encoded as text, and counted: documentation that mentions [MASK] must not put a
mask into the training data. The saved tokenizer does recognise them, as fill-mask needs.

`tokenizers` returns ids only as Python lists. `array` converts them in 19 ns per token, half the time of `np.fromiter`.
"""

import re
from array import array
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from rotary_foundry.data.rows import FRAME
from rotary_foundry.data.special_tokens import as_text, padded, read_tokenizer, special_ids, spelled
from rotary_foundry.data_prep.word_starts import KINDS, WordStarts
from rotary_foundry.data_prep.words import words_of

PIECE = 2**18  # characters of a text that are encoded at once; up to twice as many if no blank comes earlier
GROUP = 2**20  # characters after which a batch is passed on
KEPT = 2**20  # characters in cached words; each word needs about 150 bytes more in the dictionary
SEAM = re.compile(r"(?<=\S)[ \t\r\n]")


class CorpusTokenizer:
    """A tokenizer saved by preparation, which converts text to content ids and back.

    Args:
        directory: its folder.
        word_starts: what a word is (see word_starts.py); None: words are not needed.
    """

    def __init__(self, directory: Path, word_starts: str | None = None) -> None:
        self.tokenizer = open_tokenizer(directory)
        ids = special_ids(directory, self.tokenizer)
        self._roles = [self.tokenizer.id_to_token(id_) for id_ in ids.values()]
        self._word_starts = word_starts
        self.frame = FRAME.ids(ids)
        self.unknown = ids.get("unk_token", -1)  # the id of unknown text; -1: the tokenizer knows every text
        largest = max(self.tokenizer.get_vocab(with_added_tokens=True).values())
        self.vocab_size = padded(largest + 1)  # the vocabulary size of a model for this tokenizer

    @cached_property
    def _encoder(self) -> "Encoder":  # a second for a large vocabulary; some only need its size
        text = as_text(self.tokenizer, self._roles)
        return Encoder(text, KINDS[self._word_starts]() if self._word_starts else None)

    @cached_property
    def _spelled(self) -> re.Pattern:
        return spelled(self.tokenizer, self._roles)

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the content ids of all texts in one array, uint32 `[tokens]`, and their counts, int64 `[texts]`."""
        return self._encoder.encode(texts)[:2]

    def encode_words(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return what `encode` does, and where words begin, uint8 `[tokens]`; None without `word_starts`."""
        return self._encoder.encode(texts)

    def count_spelled(self, texts: Sequence[str]) -> int:
        """Count the special tokens that are spelled in the texts."""
        return sum(len(self._spelled.findall(text)) for text in texts)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of content ids; it is exact for a byte-level tokenizer that was trained here."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)


def open_tokenizer(directory: Path) -> Tokenizer:
    """Open a tokenizer without truncation and padding, with special tokens in a text encoded as text.

    Raises:
        DataError: the directory has no tokenizer, or it cannot be read.
    """
    tokenizer = read_tokenizer(directory)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # "[MASK]" in a text is six characters, not a mask
    return tokenizer


class Encoder:
    """Encodes texts and caches the ids of their words."""

    def __init__(self, tokenizer: Tokenizer, word_starts: WordStarts | None = None) -> None:
        self._tokenizer = tokenizer
        self._starts = word_starts
        self._words = words_of(tokenizer)
        self._ids: dict[str, bytes] = {}  # of each word, uint32
        self._kept = 0  # characters in these words

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return the ids of all texts, uint32 `[tokens]`, their counts, int64 `[texts]`, and where words begin.

        The last is uint8 `[tokens]`, or None without `word_starts`. There are no special tokens.
        """
        tokens, starts = bytearray(), bytearray()
        lengths = np.zeros(len(texts), dtype=np.int64)
        for group in _groups(texts):
            if self._kept > KEPT:
                self._ids.clear()
                self._kept = 0
                if self._starts:
                    self._starts.clear()
            words = [self._words(piece) for _, piece in group]
            self._learn(list(set().union(*words) - self._ids.keys()))
            for (text, piece), of_piece in zip(group, words, strict=True):
                ids = b"".join(map(self._ids.__getitem__, of_piece))
                lengths[text] += len(ids) // 4
                tokens += ids
                if self._starts:
                    starts += self._starts.of(piece, of_piece)
        words_begin = np.frombuffer(starts, dtype=np.uint8) if self._starts else None
        return np.frombuffer(tokens, dtype=np.uint32), lengths, words_begin

    def _learn(self, words: list[str]) -> None:
        encode = self._tokenizer.encode_batch if self._starts else self._tokenizer.encode_batch_fast  # has no offsets
        encodings = encode(words, add_special_tokens=False)
        for word, encoding in zip(words, encodings, strict=True):
            if self._starts:
                self._starts.learn(word, encoding)
            self._ids[word] = array("I", encoding.ids).tobytes()
        self._kept += sum(map(len, words))


def _groups(texts: Sequence[str]) -> Iterator[list[tuple[int, str]]]:
    """Yield lists of (index of the text, piece), in order, each of about GROUP characters."""
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
    """Cut a text into pieces of `size` to 2 · `size` characters, if possible before blanks; the last may be shorter."""
    start = 0
    while len(text) - start > size:
        seam = SEAM.search(text, start + size, start + 2 * size)
        end = seam.start() if seam else start + 2 * size
        yield text[start:end]
        start = end
    if start < len(text) or not text:
        yield text[start:]
