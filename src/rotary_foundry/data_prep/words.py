"""Split a text into the words that a tokenizer encodes independently of each other.

The ids of a word do not depend on the text around it. So each different word needs to be encoded only once: 16 MB of
Python source have 4 million words but only 51 thousand different ones. Splitting is the cheap part of tokenising, so
this encodes a corpus several times as fast as `tokenizers` alone, with the same ids.

The split is known for byte-level tokenizers that cut like GPT-2's: RoBERTa's, OLMo's and those trained here. In three
cases the whole text is taken as one word, which gives the same ids but is not faster: for any other tokenizer, for a
text that an NFC normaliser would change, and for a text with a character so new that `regex` counts it as a letter and
`tokenizers` may not. A test compares the words with the library's own at every character that Python knows.
"""

import json
import re
import sys
import unicodedata
from collections.abc import Callable
from functools import lru_cache

import regex
from tokenizers import Tokenizer

# As `tokenizers.pre_tokenizers.ByteLevel` documents it. `re` knows no \p.
GPT2 = regex.compile(r"'(?:s|t|re|ve|m|ll|d)| ?(?:\p{L}+|\p{N}+|[^\s\p{L}\p{N}]+)|\s+(?!\S)|\s+")
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}


def words_of(tokenizer: Tokenizer) -> Callable[[str], list[str]]:
    """Return a function that splits a text into words: joined, they are the text, and their ids are those of the text.

    Args:
        tokenizer: from `as_text`; it encodes special tokens as text.
    """
    content = json.loads(tokenizer.to_str())
    added = [token for token in content["added_tokens"] if not token["special"]]
    special = [token["content"] for token in content["added_tokens"] if token["special"]]
    known = (
        BYTE_LEVEL.items() <= (content["pre_tokenizer"] or {}).items()
        and content["normalizer"] in (None, {"type": "NFC"})
        and all(_plain(token, special) for token in added)
    )
    if not known:
        return lambda text: [text]
    # the library first searches for tokens that are matched before normalisation
    passes = [[token["content"] for token in added if token["normalized"] is late] for late in (False, True)]
    splits = [_split(contents) for contents in passes if contents]
    normalised = content["normalizer"] is not None

    def words(text: str) -> list[str]:
        certain = _newer().isdisjoint(text) and (not normalised or unicodedata.is_normalized("NFC", text))
        return _cut(text, splits) if certain else [text]

    return lambda text: _cut(text, splits) if text.isascii() else words(text)


@lru_cache(maxsize=1)
def _newer() -> frozenset[str]:
    """Return the letters, numbers and blanks that `regex` knows and Python, with its older Unicode, does not."""
    letters = regex.findall(r"[\p{L}\p{N}\s]", "".join(map(chr, range(sys.maxunicode + 1))))
    return frozenset(char for char in letters if unicodedata.category(char) == "Cn")


def _plain(token: dict, special: list[str]) -> bool:
    """Return whether an added token is found wherever its text occurs: it strips no blanks and overlaps no special."""
    content = token["content"]
    overlapping = any(
        content in other or any(other.endswith(content[:size]) for size in range(1, len(content))) for other in special
    )
    special_cases = token["single_word"] or token["lstrip"] or token["rstrip"]
    return bool(content) and not overlapping and not special_cases and unicodedata.is_normalized("NFC", content)


def _split(contents: list[str]) -> re.Pattern:
    """Return a pattern that finds the leftmost added token, and the longest at that place."""
    return re.compile(f"({'|'.join(map(re.escape, sorted(contents, key=len, reverse=True)))})")


def _cut(text: str, splits: list[re.Pattern]) -> list[str]:
    if not splits:
        return GPT2.findall(text)
    words = []
    for index, piece in enumerate(splits[0].split(text)):
        if index % 2:
            words.append(piece)
        elif piece:
            words += _cut(piece, splits[1:])
    return words
