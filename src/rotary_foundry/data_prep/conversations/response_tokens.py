"""Encode conversations, and tell which of their tokens the assistant says.

The template writes the special tokens, so nothing is put around a conversation. A special token in the content of a
turn would end the turn or begin another, so such a conversation is refused. A token across the bound of a turn is
refused too, because a model that answers would never see it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from rotary_foundry.data.special_tokens import read_tokenizer, spelled
from rotary_foundry.data_prep.conversations.chat_template import ChatTemplate, Rendered, Span
from rotary_foundry.data_prep.readers.messages import Message, Unusable


class EncodedConversation(NamedTuple):
    """A conversation as tokens."""

    tokens: np.ndarray  # uint32 [tokens]
    responses: np.ndarray  # uint8 [tokens]: 1 for the tokens of the assistant's turns
    offsets: np.ndarray  # int64 [tokens, 2]: the first character of each token, and its end


class ConversationEncoder:
    """Encodes conversations with a tokenizer and a chat template.

    Args:
        directory: the folder of the tokenizer.
        template: the chat template.
    """

    def __init__(self, directory: Path, template: ChatTemplate):
        content = json.loads(read_tokenizer(directory).to_str())
        # without the post-processor there are no special tokens around a text, and offsets include blanks
        self._tokenizer = Tokenizer.from_str(json.dumps(content | {"post_processor": None}))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.template = template
        self._special = spelled(self._tokenizer)

    def __call__(self, messages: Sequence[Message]) -> EncodedConversation:
        """Render and encode a conversation.

        Raises:
            Unusable: the template raises or changes a turn, a turn holds a special token, or a token lies across the
                bound of a turn.
        """
        for number, message in enumerate(messages):
            if found := self._special.search(message["content"]):
                raise Unusable(f"turn {number} ({message['role']}) holds {found[0]}, a special token of the tokenizer")
        return self.encode(self.template.render(messages))

    def encode(self, rendered: Rendered) -> EncodedConversation:
        """Encode a rendered conversation. Raises Unusable if a token lies across the bound of a turn."""
        encoding = self._tokenizer.encode(rendered.text, add_special_tokens=False)
        offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        responses = np.zeros(len(offsets), np.uint8)
        for turn in rendered.turns:
            responses |= _inside(offsets, turn)
        if not responses[1:].any():
            raise Unusable("there is nothing to predict: the assistant says no token")
        return EncodedConversation(np.array(encoding.ids, np.uint32), responses, offsets)

    def without_first(
        self, messages: Sequence[Message], conversation: EncodedConversation, tokens: int
    ) -> EncodedConversation:
        """Leave out the first tokens of the first user turn's content, so that headers and answers stay.

        Args:
            messages: the turns.
            conversation: `self(messages)`.
            tokens: the number of tokens to leave out.

        Raises:
            Unusable: the turn has too few tokens.
        """
        first = next(number for number, message in enumerate(messages) if message["role"] == "user")
        text = self.template.text(messages)
        places = np.flatnonzero(
            _inside(conversation.offsets, self.template.content(messages, first, text), exact=False)
        )
        if len(places) <= tokens:
            raise Unusable(
                f"has {len(conversation.tokens):,} tokens, {tokens:,} too many, and only {len(places):,} of the first "
                "user's turn could be cut: a turn of the assistant would be cut away"
            )
        return EncodedConversation(*(np.delete(column, places[:tokens], axis=0) for column in conversation))


def _inside(offsets: np.ndarray, span: Span, exact: bool = True) -> np.ndarray:
    """Return a uint8 `[tokens]` with 1 for the tokens inside a span of characters.

    Raises:
        Unusable: `exact` is set, and a token lies across the bound of the span.
    """
    start, end = span
    begin, finish = offsets.T
    across = ((begin < start) & (finish > start)) | ((begin < end) & (finish > end))
    if exact and across.any():
        raise Unusable(f"a token lies across the bound of a turn, at character {begin[across][0]} of the rendered text")
    return ((begin >= start) & (finish <= end) & (begin < end)).astype(np.uint8)
