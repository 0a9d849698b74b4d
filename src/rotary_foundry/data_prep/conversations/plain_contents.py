"""Encode the prompt of a chat in which only the template's special tokens are special, and those of contents are text.

A template joins both into one text. So special tokens that a content spells are replaced by placeholders before it is
rendered. Then every special token of the text is the template's, and gets a name that no text has. The two code points
that mark placeholders and names are not characters; in a content they become U+FFFD.
"""

import re
from collections.abc import Iterable, Sequence

from tokenizers import Encoding, Tokenizer

from rotary_foundry.data.special_tokens import UNWRITTEN, as_text, spelled
from rotary_foundry.data_prep.readers.messages import Message

MARK = "\U0010fffe"  # not a character
PLACEHOLDER = re.compile(f"{MARK}([0-9a-f]+){MARK}")
REPLACED = str.maketrans({MARK: "\ufffd", UNWRITTEN: "\ufffd"})


class PlainContents:
    """Encodes chats with a tokenizer.

    Args:
        tokenizer: not changed.
        roles: as in `as_text`.
    """

    def __init__(self, tokenizer: Tokenizer, roles: Iterable[str]):
        roles = list(roles)
        self._special = spelled(tokenizer, roles)
        self._tokenizer = as_text(tokenizer, roles, kept=True)

    def hide(self, messages: Sequence[Message]) -> list[Message]:
        """Return the messages to render: with placeholders for special tokens that their contents spell."""
        return [
            {
                **message,
                "content": self._special.sub(
                    lambda found: _placeholder(found[0]), message["content"].translate(REPLACED)
                ),
            }
            for message in messages
        ]

    def named(self, rendered: str) -> str:
        """Return the text to encode for the rendering of `hide(messages)`, or for a part of it."""
        text = self._special.sub(lambda found: UNWRITTEN + found[0], rendered)
        return PLACEHOLDER.sub(lambda found: bytes.fromhex(found[1]).decode(), text)

    def encode(self, text: str) -> Encoding:
        """Encode a text from `named`. Nothing is put around it, because the template writes all that it needs."""
        return self._tokenizer.encode(text, add_special_tokens=False)


def _placeholder(token: str) -> str:
    return f"{MARK}{token.encode().hex()}{MARK}"
