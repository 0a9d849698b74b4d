"""Render conversations with a chat template, and find the assistant's turns in the text.

A template is Jinja, as in transformers, and runs in its sandbox. Most templates do not mark what the assistant says, so
its turns are found by rendering. A turn begins at the end of the rendering of all turns before it and the header that
asks for an answer. It ends at the end of the rendering of all turns up to and including it. The turn is rendered once
more with a mark in place of its content. This shows exactly which text the template puts around the content, whether it
strips the content, and whether it has such a header. If a template has `{% generation %}` tags, these decide.

A turn ends with the end-of-turn token. Blanks that the template puts after it, such as ChatML's newline, do not belong
to the turn, because generation stops before them. A conversation whose turns are not found in this way is refused.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import TemplateSyntaxError

from rotary_foundry.data.special_tokens import ROLES_FILE
from rotary_foundry.data_prep.readers.messages import Message, Unusable
from rotary_foundry.utils.errors import DataError
from rotary_foundry.utils.json_text import read_object
from rotary_foundry.utils.wording import one_line

TEMPLATE_FILE = "chat_template.jinja"  # beside tokenizer.json
OLD_ROLES_FILE = "special_tokens_map.json"  # early versions of transformers 4 saved the roles only here
TAGGED = re.compile(r"\{%-?\s*generation\s*-?%\}")
MARK = "\ue000"  # private use; repeated until no content contains it

Span = tuple[int, int]  # text[start:end]


@dataclass(frozen=True)
class Rendered:
    """A conversation as text."""

    text: str
    turns: tuple[Span, ...]  # the assistant's, each with its end-of-turn token


class ChatTemplate:
    """A chat template with the special tokens that it may name.

    Args:
        source: the template, in Jinja.
        special_tokens: by role, such as bos_token.
        where: its file, for errors.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str], where: str):
        self.source, self.special_tokens, self.where = source, dict(special_tokens), where

    def render(self, messages: Sequence[Message]) -> Rendered:
        """Render a conversation and find the assistant's turns.

        Raises:
            Unusable: the template raises, or a turn is not found.
            DataError: the template is not Jinja.
        """
        if TAGGED.search(self.source):
            text, turns = self._jinja(messages, tags=True)
            answers = [message["content"].strip() for message in messages if message["role"] == "assistant"]
            if len(turns) != len(answers) or any(
                answer not in text[start:end] for answer, (start, end) in zip(answers, turns, strict=True)
            ):
                raise Unusable("the template's generation tags do not hold each of the assistant's turns")
            return Rendered(text, tuple(turns))
        text = self.text(messages)
        return Rendered(text, tuple(self._turns(messages, text)))

    def text(self, messages: Sequence[Message], ask: bool = False) -> str:
        """Render turns, and with `ask` the header after which the assistant answers. Raises as `render`."""
        return self._jinja(messages, ask=ask)[0]

    def content(self, messages: Sequence[Message], number: int, text: str) -> Span:
        """Find the content of a turn in `text`, the rendering of `messages`.

        Raises:
            Unusable: the template changes it, apart from blanks around it.
        """
        mark = MARK
        while mark in text:
            mark += MARK
        marked = self.text([*messages[:number], {**messages[number], "content": mark}, *messages[number + 1 :]])
        before, found, after = marked.partition(mark)
        end = len(text) - len(after)
        whole = found and text.startswith(before) and text.endswith(after) and mark not in after
        if not whole or text[len(before) : end].strip() != messages[number]["content"].strip():
            raise Unusable(f"the template does not write turn {number} ({messages[number]['role']}) as it is")
        return len(before), end

    def _turns(self, messages: Sequence[Message], text: str) -> Iterator[Span]:
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            asked = self.text(messages[:number], ask=True)
            so_far = text if number == len(messages) - 1 else self.text(messages[: number + 1])
            if not text.startswith(so_far) or not so_far.startswith(asked):
                raise Unusable(f"the template renders turn {number} (assistant) differently when it is the last")
            begin, end = self.content(messages[: number + 1], number, so_far)
            if begin < len(asked):
                raise Unusable(f"the template's header for turn {number} (assistant) already has a part of its content")
            is_asked = not so_far[len(asked) : begin].strip()  # otherwise the template has no header that asks
            closing = so_far[end:].rstrip() or so_far[end:]
            yield (len(asked) if is_asked else begin), end + len(closing)

    def _jinja(self, messages: Sequence[Message], ask: bool = False, tags: bool = False) -> tuple[str, list[Span]]:
        from transformers.utils.chat_template_utils import render_jinja_template  # seconds

        options = {"add_generation_prompt": ask, "return_assistant_tokens_mask": tags, **self.special_tokens}
        try:
            (text,), turns = render_jinja_template([list(messages)], chat_template=self.source, **options)
        except TemplateSyntaxError as error:
            raise DataError(
                f"{self.where}: line {error.lineno}: not a chat template in Jinja: {error.message}"
            ) from None
        except Exception as error:  # a template may raise anything
            raise Unusable(f"the chat template raised: {one_line(error)}") from error
        return text, turns[0] if tags else []


def open_template(
    tokenizer: str | Path | None, given: str | Path | None, special_tokens: Mapping[str, str]
) -> ChatTemplate:
    """Open the chat template in `given`, or the tokenizer's own.

    Args:
        tokenizer: the folder of the tokenizer; None if it is trained here, because then it has no template.
        given: a file with a Jinja template.
        special_tokens: the spelling of the special tokens of a tokenizer that is trained here.

    Raises:
        DataError: there is no template, or it cannot be read; the message names the file and what to do.
    """
    tokenizer, given = (None if path is None else Path(path) for path in (tokenizer, given))
    files = [] if tokenizer is None else [tokenizer / name for name in (OLD_ROLES_FILE, ROLES_FILE)]
    config = {key: value for file in files if file.exists() for key, value in read_object(file).items()}
    roles = {role: _spelling(token) for role, token in config.items() if role.endswith("_token") and token}
    roles = {role: token for role, token in roles.items() if isinstance(token, str)} or dict(special_tokens)
    for file in (given, tokenizer and tokenizer / TEMPLATE_FILE):
        if file is not None and (file == given or file.is_file()):
            try:
                return ChatTemplate(file.read_text(encoding="utf-8"), roles, str(file))
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{file}: cannot be read as a chat template: {one_line(error)}") from None
    own = config.get("chat_template")
    if isinstance(own, list):  # several templates with names
        named = (each for each in own if isinstance(each, dict) and each.get("name") == "default")
        own = next(named, {}).get("template")
    if not isinstance(own, str):
        raise DataError(
            f"{tokenizer or 'tokenizer.train'}: the tokenizer has no chat template; give a file of Jinja with "
            "`tokenizer.chat_template`"
        )
    return ChatTemplate(own, roles, f"{tokenizer / ROLES_FILE}: chat_template")


def _spelling(token: object) -> object:
    return token.get("content") if isinstance(token, dict) else token
