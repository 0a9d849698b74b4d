"""Draw from a document the chunk to ask about, and make an example from a question and its answer.

Everything random depends only on the seed and the hash of the document's text, so that files can be moved and renamed.
Only `random()` of Python's generator is used, because its sequence is the same in every version.
"""

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rotary_foundry.data.fast_tokenizer import open_fast
from rotary_foundry.data_prep.encoding import open_tokenizer
from rotary_foundry.data_prep.self_instruct.instruct_prompts import EXAMPLES, NORMAL, SHORT, Rejected, fill
from rotary_foundry.data_prep.self_instruct.self_instruct_config import SelfInstructConfig
from rotary_foundry.utils.errors import ConfigurationError, DataError
from rotary_foundry.utils.wording import one_line

CHARACTERS = 8  # characters of a text that are encoded at first, per token that is needed
TEMPLATE_ROOM = 64  # tokens for the chat template of a tokenizer that has none yet


@dataclass(frozen=True)
class Task:
    """A document, the chunk of it to ask about, and the kind of question."""

    source: str
    document: str  # its id: file and line or row
    text: str  # the document, without the end that no example can hold
    bounds: list[int]  # the character at which each token of `text` begins, and the end of the last one
    first: int  # first token of the chunk in `text`
    last: int  # token after the chunk
    kind: str
    seed: int

    @property
    def chunk(self) -> str:
        """The text of the chunk."""
        return self.text[self.bounds[self.first] : self.bounds[self.last]]


class Drawer:
    """Draws tasks from documents and makes examples, with lengths in tokens of the model that will be trained.

    Raises:
        DataError: the tokenizer cannot be read, or its chat template refuses a user's turn with an answer.
        ConfigurationError: an example has no room for a document.
    """

    def __init__(self, config: SelfInstructConfig) -> None:
        self.config = config
        folder = Path(config.tokenizer)
        self._tokenizer = open_tokenizer(folder)
        self._fast = open_fast(folder)
        self._backend = self._fast.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        try:
            frame = self._length(self._messages("", NORMAL, "a", "a"))
        except Exception as error:  # a template may raise anything
            raise DataError(f"{folder}: the chat template cannot be applied: {one_line(error)}") from error
        self.room = config.max_tokens - frame - config.reply_tokens  # tokens of a document that always fit
        if self.room < 1:
            raise ConfigurationError(
                f"'max_tokens': {config.max_tokens} leave no room for a document: the template and the question take "
                f"{frame}, and reply_tokens {config.reply_tokens}; raise it, or lower reply_tokens"
            )

    def task(self, source: str, document: str, text: str) -> Task | None:
        """Draw a chunk and a kind of question; None if the document is shorter than `min_tokens`."""
        config = self.config
        bounds = self._bounds(text, config.max_tokens)
        tokens = len(bounds) - 1
        if tokens < config.min_tokens:
            return None
        generator = random.Random(f"{config.seed}:{hashlib.sha256(text.encode()).hexdigest()}")
        kept = min(tokens, self.room)
        chunks = -(-kept // config.chunk_tokens)
        chunk = int(generator.random() * chunks)
        kind = NORMAL if generator.random() < 0.5 else SHORT
        seed = int(generator.random() * 2**31)
        first, last = (kept * number // chunks for number in (chunk, chunk + 1))
        return Task(source, document, text[: bounds[-1]], bounds, first, last, kind, seed)

    def example(self, task: Task, question: str, answer: str) -> dict:
        """Make the example: document, question and answer; the document is cut so that all have at most `max_tokens`.

        Raises:
            Rejected: the document would have to be cut before the end of the chunk.
        """
        tokens = len(task.bounds) - 1
        while tokens >= task.last:
            messages = self._messages(task.text[: task.bounds[tokens]], task.kind, question, answer)
            if (excess := self._length(messages) - self.config.max_tokens) <= 0:
                return {
                    "messages": messages,
                    "source": task.source,
                    "document": task.document,
                    "chunk": [task.bounds[task.first], task.bounds[task.last]],  # characters of the document
                    "kind": task.kind,
                    "generator": self.config.generator,
                }
            tokens -= excess
        raise Rejected("question and answer leave no room for the chunk in max_tokens")

    def _messages(self, document: str, kind: str, question: str, answer: str) -> list[dict[str, str]]:
        prompt = fill(self.config.prompt(EXAMPLES[kind]), document=document, question=question)
        return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]

    def _length(self, messages: list[dict[str, str]]) -> int:
        """Return the tokens of a conversation, with its template."""
        if self._fast.chat_template is None:
            return TEMPLATE_ROOM + sum(self._count(self._tokenizer, message["content"]) for message in messages)
        return self._count(self._backend, self._fast.apply_chat_template(messages, tokenize=False))

    @staticmethod
    def _count(tokenizer: Any, text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    def _bounds(self, text: str, most: int) -> list[int]:
        """Return the characters at which the first `most` tokens begin, and the end of the last of them."""
        size = CHARACTERS * most
        while True:
            encoding = self._tokenizer.encode(text[:size], add_special_tokens=False)
            if len(encoding) > most or size >= len(text):
                break
            size *= 2
        starts = [start for start, _ in encoding.offsets[: most + 1]]
        ends = [len(text)] if 0 < len(starts) <= most else []
        return [0, *starts[1:], *ends]
