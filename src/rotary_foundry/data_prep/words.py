"""The words of a text: what a tokenizer cuts it into before its model sees it, and encodes each by itself.

Because a word's ids depend on nothing around it, whoever knows the words need have each different one encoded once:
16 MB of Python source have 4 million words, and 51 thousand different ones. Cutting is the cheap part of tokenising; so
a corpus is read several times as fast as `tokenizers` alone reads it, and every id is still its own.

Known are the words of a byte-level tokenizer that cuts as GPT-2's does: RoBERTa's, OLMo's, those that are trained
here. For any other, for a text that an NFC normaliser would change, and for one with a character so new
that `regex` knows it for a letter and `tokenizers` may not, the whole text is taken as one word: the ids are the same,
without the gain. A test holds the words to the library's own at every character that Python knows.
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
    """What cuts a text into words, in their order, that together are the text and have its ids.

    Args:
        tokenizer: as `open_tokenizer` gives it: one that reads special tokens as text.
    """
    content = json.loads(tokenizer.to_str())
    added = [token for token in content["added_tokens"] if not token["special"]]
    special = [token["content"] for token in content["added_tokens"] if token["special"]]
    known = (
        BYTE_LEVEL.items() <= (content["pre_tokenizer"] or {}).items()
        and content["normalizer"] in (None, {"type": "NFC"})
        and not content["model"].get("dropout")
        and all(_plain(token, special) for token in added)
    )
    if not known:
        return lambda text: [text]
    # the library looks for those first that are sought before the text is normalised
    passes = [[token["content"] for token in added if token["normalized"] is late] for late in (False, True)]
    splits = [_split(contents) for contents in passes if contents]
    normalised = content["normalizer"] is not None

    def words(text: str) -> list[str]:
        certain = _newer().isdisjoint(text) and (not normalised or unicodedata.is_normalized("NFC", text))
        return _cut(text, splits) if certain else [text]

    return lambda text: _cut(text, splits) if text.isascii() else words(text)


@lru_cache(maxsize=1)
def _newer() -> frozenset[str]:
    """The letters, numbers and blanks of `regex` that Python, whose Unicode is older than either library's, lacks."""
    letters = regex.findall(r"[\p{L}\p{N}\s]", "".join(map(chr, range(sys.maxunicode + 1))))
    return frozenset(char for char in letters if unicodedata.category(char) == "Cn")


def _plain(token: dict, special: list[str]) -> bool:
    """Whether an added token is found wherever it is spelled: it takes nothing along, and no special one hides it."""
    content = token["content"]
    overlapping = any(
        content in other or any(other.endswith(content[:size]) for size in range(1, len(content))) for other in special
    )
    special_cases = token["single_word"] or token["lstrip"] or token["rstrip"]
    return bool(content) and not overlapping and not special_cases and unicodedata.is_normalized("NFC", content)


def _split(contents: list[str]) -> re.Pattern:
    """The leftmost, and there the longest, of some added tokens."""
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
