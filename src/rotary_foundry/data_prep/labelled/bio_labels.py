"""Turn words with BIO labels, as CoNLL files have them, into a text with entities.

A label is O, or a prefix, '-' and a kind. The prefix B begins an entity, I continues one, E ends one, and S marks an
entity of one word. Files with only I, such as CoNLL-2003's, are read too: an I that follows no entity of its kind
begins one. Words are joined by a blank, unless the character on either side of it is Chinese or Japanese.
"""

import unicodedata

from rotary_foundry.data_prep.labelled.labelled_example import Example, Span
from rotary_foundry.utils.errors import DataError

PREFIXES = "BIES"


def with_entities(example: Example) -> Example:
    """Turn an example of words with BIO labels into one of a text with entities.

    Raises:
        DataError: words and labels are not lists of equally many texts, or a label is not BIO; it names the example.
    """
    words, labels, where = example.text, example.label, example.where
    for name, column in (("words", words), ("labels", labels)):
        if not isinstance(column, list) or not all(isinstance(one, str) for one in column):
            raise DataError(f"{where}: expected a list of texts as {name}, found {column!r}")
    if len(words) != len(labels):
        raise DataError(f"{where}: {len(words)} words have {len(labels)} labels; give each word one")
    text, spans, opened = "", [], None  # opened: the kind of the last entity while it may continue
    for word, label in zip(words, labels, strict=True):
        text += " " if text and word and not (_has_no_blanks(text[-1]) or _has_no_blanks(word[0])) else ""
        start, text = len(text), text + word
        prefix, _, kind = label.partition("-")
        if label == "O":
            opened = None
            continue
        if prefix not in PREFIXES or len(prefix) != 1 or not kind:
            raise DataError(
                f"{where}: the word {word!r} has label {label!r}; expected O, or B-, I-, E- or S- and a kind"
            )
        goes_on = prefix in "IE" and kind == opened
        if goes_on:
            start = spans.pop().start
        spans.append(Span(kind, start, len(text)))
        opened = None if prefix in "ES" else kind
    return Example(where, text, spans, example.id)


def _has_no_blanks(char: str) -> bool:
    """Return whether a character belongs to a script without blanks between words."""
    return unicodedata.east_asian_width(char) in "WF" and not unicodedata.name(char, "").startswith("HANGUL")
