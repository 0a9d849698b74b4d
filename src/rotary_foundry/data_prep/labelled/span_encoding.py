"""Encode choices, questions with passages, and texts with entities for the heads of `head_models.py`.

All parts of a text are joined by the separator, as in `[CLS] question [SEP] passage [SEP]`, and all tokens have the
segment 0, as in the fine-tuning code of roformer-v2. Positions of characters are turned into positions of tokens:

- A passage that is too long is divided into windows, which begin STRIDE tokens apart. A window without the whole answer
  has the answer (0, 0), which is [CLS]. The answer's first and last token are those that hold its first and last
  character.
- An entity's first token must begin where it begins, and its last token must end where it ends. Any other entity, and
  any entity in the part that is cut off, cannot be learned, but counts as missed in the evaluation.
"""

import json
from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

from rotary_foundry.data.rows import FRAME
from rotary_foundry.data.special_tokens import as_text
from rotary_foundry.data_prep.labelled.labelled_example import Choices, Example, Span
from rotary_foundry.utils.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STRIDE = 128
NOWHERE = -1, -1  # the characters of a special token
Offsets = list[tuple[int, int]]


class PartsTokenizer:
    """Tokenises parts of texts without adding special tokens; those spelled in a text are text.

    Args:
        tokenizer: a fast tokenizer.
        limit: the most tokens of a joined text, special tokens included.

    Raises:
        DataError: the tokenizer has no [CLS] or [SEP].
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", limit: int):
        if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
            raise DataError(f"{tokenizer.name_or_path}: the tokenizer has no cls_token or sep_token, which join texts")
        self.tokenizer, self.limit = tokenizer, limit
        self.cls, self.sep = tokenizer.cls_token_id, tokenizer.sep_token_id
        self._text = as_text(tokenizer.backend_tokenizer, tokenizer.all_special_tokens)

    def __call__(self, text: str) -> tuple[list[int], Offsets]:
        """Return the ids of a text's tokens, and the characters of each as (start, end), without blanks before them."""
        encoding = self._text.encode(text, add_special_tokens=False)
        offsets = [(end - len(text[start:end].lstrip()), end) for start, end in encoding.offsets]
        return encoding.ids, offsets

    def limited(self, limit: int) -> "PartsTokenizer":
        """Return this tokenizer with another limit."""
        other = copy(self)
        other.limit = limit
        return other

    def content(self, parts: int) -> int:
        """Return the most tokens that `parts` parts may have together."""
        return self.limit - len(FRAME.before) - parts * len(FRAME.after)

    def join(self, *parts: list[int]) -> list[int]:
        """Return the parts with [CLS] before them and [SEP] after each."""
        return [self.cls, *(token for part in parts for token in (*part, self.sep))]


def encode_choices(examples: Sequence[Example], parts: PartsTokenizer) -> tuple[dict[str, list], list[str]]:
    """Return `input_ids` [choices, tokens] of every example, its label, group and id, and the places of cut examples.

    A text that is too long loses tokens of its longest part, never of the choice. If a text follows the choice, the
    part directly before the choice loses its first tokens. Any other part loses its last ones.

    Raises:
        DataError: an example has no room for its choices, or another number of them than the examples before it.
    """
    columns: dict[str, list] = {"input_ids": [], "labels": [], "group": [], "id": []}
    long = []
    groups: dict[Any, int] = {}
    number = len(examples[0].text.choices)
    for example in examples:
        text: Choices = example.text
        if len(text.choices) != number:
            raise DataError(f"{example.where}: {len(text.choices)} choices, the examples before it have {number}")
        before, after = ([parts(part)[0] for part in side] for side in (text.before, text.after))
        choices = [parts(choice)[0] for choice in text.choices]
        room = parts.content(len(before) + 1 + len(after)) - max(map(len, choices))
        if room < 1:
            raise DataError(f"{example.where}: its choices alone are over the {parts.limit:,} tokens of max_seq_len")
        if sum(map(len, before + after)) > room:
            long.append(example.where)
        while sum(map(len, before + after)) > room:
            longest = max(before + after, key=len)
            longest.pop(0 if after and longest is before[-1] else -1)
        columns["input_ids"].append([parts.join(*before, choice, *after) for choice in choices])
        columns["labels"].append(-1 if example.label is None else example.label)
        columns["group"].append(groups.setdefault(example.group, len(groups)))
        columns["id"].append(json.dumps(example.id))
    return columns, long


def encode_answers(
    examples: Sequence[Example], parts: PartsTokenizer, training: bool
) -> tuple[dict[str, list], list[str]]:
    """Return the windows of every example, and the places of examples whose question is cut.

    A window has `input_ids`, and `allowed`, which is 1 for [CLS] and for tokens that an answer may contain. In training
    it also has `labels`, the answer's first and last token. Otherwise it has the example's number, id, passage and
    answers, and `offsets`, the characters of every token.

    Raises:
        DataError: an example has no room for a passage, or the tokenizer drops its answer entirely.
    """
    columns: dict[str, list] = {}
    long = []
    for number, example in enumerate(examples):
        question, passage = example.text
        question_ids, (ids, offsets) = parts(question)[0], parts(passage)
        if len(question_ids) > parts.limit // 2:
            long.append(example.where)
            del question_ids[parts.limit // 2 :]
        room = parts.content(2) - len(question_ids)
        if room < 1:
            raise DataError(f"{example.where}: {parts.limit} tokens have no room for a passage; raise max_seq_len")
        step = min(STRIDE, max(room // 2, 1))
        first = len(parts.join(question_ids))  # the passage's first token in a window
        answer = _covering(example, offsets, passage) if training else None
        for start in range(0, max(len(ids) - room, 0) + step, step):
            window = ids[start : start + room]
            row: dict[str, Any] = {
                "input_ids": parts.join(question_ids, window),
                "allowed": [1, *[0] * (first - 1), *[1] * len(window), 0],
            }
            if answer is not None:
                inside = start <= answer[0] and answer[1] < start + len(window)
                row["labels"] = [token - start + first for token in answer] if inside else [0, 0]
            else:
                row["offsets"] = [*[NOWHERE] * first, *offsets[start : start + room], NOWHERE]
                row |= {"number": number, "id": json.dumps(example.id), "text": passage}
                row["answers"] = [passage[span.start : span.end] for span in example.label or ()]
            for key, value in row.items():
                columns.setdefault(key, []).append(value)
            if start + room >= len(ids):
                break
    return columns, long


def _covering(example: Example, offsets: Offsets, passage: str) -> tuple[int, int]:
    """Return the tokens that hold the first and the last character of the first answer."""
    span: Span = example.label[0]
    touched = [token for token, (start, end) in enumerate(offsets) if start < span.end and end > span.start]
    if not touched:
        raise DataError(f"{example.where}: the tokenizer drops the answer {passage[span.start : span.end]!r} entirely")
    return touched[0], touched[-1]


def encode_entities(
    examples: Sequence[Example], kinds: Sequence[str], parts: PartsTokenizer
) -> tuple[dict[str, list], list[str]]:
    """Return a row for every example, and the places of cut examples.

    A row has `input_ids`, `allowed`, `offsets`, its id and text; `labels`, the entities to learn, each as [number of
    the kind, first token, last token]; and `entities`, all of them as [number of the kind, start, end] in characters.

    Raises:
        DataError: an entity's kind is not among `kinds`.
    """
    columns: dict[str, list] = {
        key: [] for key in ("input_ids", "allowed", "labels", "offsets", "id", "text", "entities")
    }
    numbers = {kind: number for number, kind in enumerate(kinds)}
    long = []
    for example in examples:
        ids, offsets = parts(example.text)
        if len(ids) > (most := parts.content(1)):
            long.append(example.where)
            ids, offsets = ids[:most], offsets[:most]
        places = list(enumerate(offsets, len(FRAME.before)))
        # a character may have several tokens, and blanks alone may be a token
        starts = {start: token for token, (start, end) in reversed(places) if start < end}
        ends = {end: token for token, (_, end) in places}
        for span in example.label or ():
            if span.kind not in numbers:
                raise DataError(
                    f"{example.where}: the kind '{span.kind}' is not among those of the task ({', '.join(kinds)}); "
                    "correct it, or list all kinds under the task's `labels`"
                )
        entities = sorted({(numbers[span.kind], span.start, span.end) for span in example.label or ()})
        columns["labels"].append(
            [[kind, starts[start], ends[end]] for kind, start, end in entities if start in starts and end in ends]
        )
        columns["input_ids"].append(joined := parts.join(ids))
        columns["allowed"].append([1] * len(joined))
        columns["offsets"].append([NOWHERE, *offsets, NOWHERE])
        columns["entities"].append(entities)
        columns["id"].append(json.dumps(example.id))
        columns["text"].append(example.text)
    return columns, long
