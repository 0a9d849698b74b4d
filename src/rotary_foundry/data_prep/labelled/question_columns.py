"""Turn rows with columns of any name into questions about a passage, and into questions with choices.

- answers: `text` names the columns of the question and of the passage. The label is a text in the passage, a list of
  such texts (the first is learned), or SQuAD's mapping with the lists `text` and `answer_start`.
- choices: `text` names one or two columns of text, then the column with the list of choices. The label is the number of
  the right choice, from 0, or its text.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rotary_foundry.data_prep.labelled.clue_files import place_of_answer
from rotary_foundry.data_prep.labelled.labelled_example import Choices, Example
from rotary_foundry.utils.errors import DataError


def with_answers(example: Example) -> Example:
    """Turn an example of a row's columns into one of a question, a passage and its answers.

    Raises:
        DataError: a column has another type, or an answer is not in the passage; the message names the row.
    """
    where, label = example.where, example.label
    question, passage = _texts(example.text, "question and passage", where)
    given = label if isinstance(label, Mapping) else {"text": [label] if isinstance(label, str) else label}
    answers = _texts(given.get("text"), "answers", where)
    starts = given.get("answer_start") or [0] * len(answers)
    if not _is_list(starts) or len(starts) != len(answers) or not all(type(start) is int for start in starts):
        raise DataError(f"{where}: expected {len(answers)} integers as 'answer_start', one per answer, got {starts!r}")
    if not answers or not all(answers):
        raise DataError(f"{where}: expected an answer of at least one character, found {label!r}")
    spans = [place_of_answer(passage, answer, start, where) for answer, start in zip(answers, starts, strict=True)]
    return Example(where, (question, passage), spans)


def with_choices(example: Example) -> Example:
    """Turn an example of a row's columns into one of a question with choices.

    Raises:
        DataError: a column has another type, or the label is not among the choices; the message names the row.
    """
    where, label = example.where, example.label
    before = _texts(example.text[:-1], "text before the choices", where)
    choices = _texts(example.text[-1], "choices", where)
    if len(choices) < 2 or len(set(choices)) < len(choices):
        raise DataError(f"{where}: expected at least two different choices, found {list(choices)!r}")
    right = choices.index(label) if label in choices else label
    if type(right) is not int or right not in range(len(choices)):
        raise DataError(
            f"{where}: expected the right choice as a number from 0 to {len(choices) - 1} or as its text, found "
            f"{label!r}"
        )
    return Example(where, Choices(before, choices), right, group=where)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _texts(value: Any, what: str, where: str) -> tuple[str, ...]:
    if not _is_list(value) or not all(isinstance(one, str) for one in value):
        raise DataError(f"{where}: expected texts as {what}, found {value!r}")
    return tuple(value)
