"""Number the labels of a task.

Their order is that of the model's head if it has one, otherwise that of the YAML, otherwise the sorted labels of the
training data. Any other label, in any split, is an error.
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from rotary_foundry.data_prep.labelled.labelled_example import Example
from rotary_foundry.utils.errors import DataError

DIGITS = re.compile("[0-9]{1,300}")  # Python converts no text of thousands of digits to a number


class Labels:
    """The names of labels and their numbers.

    Args:
        names: names in the order of their numbers; empty for a regression.
        source: the origin of the names, for messages.
        numbered: whether the data may have a label's number instead of its name.
    """

    def __init__(self, names: Sequence[str], source: str, numbered: bool):
        self.names = list(names)
        self.source = source
        self.numbers = {name: number for number, name in enumerate(self.names)}
        if numbered and not any(name.isdigit() for name in self.names):
            self.numbers |= {str(number): number for number in range(len(self.names))}

    @classmethod
    def of(
        cls, name: str, type: str, given: Sequence[str], train: Sequence[Example], head: list[str] | None = None
    ) -> "Labels":
        """Determine the labels of a task.

        Args:
            name: the name of the task, for messages.
            type: the type of the task, as in `Example`.
            given: the YAML's `labels`; empty if it has none.
            train: the training examples.
            head: the labels of a model's head, if it has one.

        Raises:
            DataError: the head has other labels than the task, or all examples have the same label.
        """
        if type == "regression":
            if head is not None and len(head) != 1:
                raise DataError(
                    f"tasks.{name}: a regression needs a head with one number, but the model's has {len(head)} labels"
                )
            return cls([], "", False)
        if type in ("choice", "answer"):
            return cls([], "", False)
        if type == "entities":
            kinds = given or sorted({span.kind for example in train for span in example.label})
            if not kinds:
                raise DataError(f"tasks.{name}: no training text has an entity; there is nothing to learn")
            return cls(kinds, "the training data", False)
        if given:
            names, source = given, f"tasks.{name}.labels"
        else:
            names, source = _occurring(train), "the training data"
        if head is not None and all(label == f"LABEL_{number}" for number, label in enumerate(head)):
            if len(names) != len(head):
                raise DataError(
                    f"tasks.{name}: {source} has {len(names)} labels ({listed(names)}), the model's head {len(head)}"
                )
        elif head is not None:
            if given and list(given) != head:
                raise DataError(
                    f"tasks.{name}.labels: {listed(given)}; the model's head has {listed(head)}, in that order"
                )
            names, source = head, "the model's head"
        if len(names) < 2:
            raise DataError(
                f"tasks.{name}: all training examples, from {train[0].where} on, have the label '{names[0]}'; there is "
                "nothing to learn"
            )
        return cls(names, source, bool(given))

    def number(self, value: Any, where: str) -> int:
        """Return the number of a label.

        Raises:
            DataError: the label is missing or unknown.
        """
        text = _text(value, where)
        if text not in self.numbers and isinstance(value, bool):
            text = str(value)  # a head may have Python's spelling of it
        if text not in self.numbers:
            raise DataError(
                f"{where}: label '{text}' is not among those of {self.source} ({listed(self.names)}); correct it, or "
                "list all labels, in order, under the task's `labels`"
            )
        return self.numbers[text]


def _occurring(examples: Iterable[Example]) -> list[str]:
    found = set()
    for example in examples:
        values = example.label if isinstance(example.label, list) else [example.label]
        found.update(_text(value, example.where) for value in values)
    return sorted(found, key=lambda label: (int(label), "") if DIGITS.fullmatch(label) else (math.inf, label))


def _text(value: Any, where: str) -> str:
    """Return a label as JSON spells it; 1.0 becomes 1, because a column of integers with a gap is read as floats."""
    _refuse_missing(value, where)
    if isinstance(value, float) and not value.is_integer():
        raise DataError(
            f"{where}: expected a class, got the number {value}; to learn numbers, make the task a regression"
        )
    if isinstance(value, list | dict):
        raise DataError(
            f"{where}: the label is a {type(value).__name__}; expected one label per example (several labels per text "
            "are not supported), unless its type is token"
        )
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) else str(value)


def as_number(value: Any, where: str) -> float:
    """Return the label of a regression.

    Raises:
        DataError: it is missing or not a finite number.
    """
    _refuse_missing(value, where)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise DataError(
            f"{where}: expected a number for a regression, got label {value!r}; names need a classification"
        ) from None
    if not math.isfinite(number):
        raise DataError(f"{where}: the label is {number}; give it a value, or leave the row out")
    return number


def _refuse_missing(value: Any, where: str) -> None:
    missing = value is None or value != value or (isinstance(value, str) and value.strip().lower() in ("", "nan"))
    if missing:
        what = "empty" if value is None or not str(value).strip() else "NaN"
        raise DataError(f"{where}: the label is {what}; give it a value, or leave the row out")


def listed(names: Sequence[str]) -> str:
    """Return the first eight names, and how many there are, for a message."""
    return ", ".join(names[:8]) + (f" … {len(names)} in all" if len(names) > 8 else "")
