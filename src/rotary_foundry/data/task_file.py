"""The file `task.json` of a task, which preparation writes and a multi-task stage reads.

A task is a source of a corpus: `<task>/task.json` lies beside `<task>/<row_length>/<split>`. Rows of a labelled task
have the column `targets`, float64, which holds n × 4 numbers, four per target. The first is the index of a document of
the row; the meaning of the others depends on the kind:

- classification: label, 0, 0
- regression: the number, 0, 0
- choice: the number of choices, which are the documents from this one on; the index of the right choice; 0
- answer: the answer's first and last token, counted from the document's first; 0, 0 if there is no answer; then 0
- entities: label, first and last token of an entity, one target each; -1, 0, 0 for a text without entities

Rows of answers and entities also have `allowed`, uint8, which is 1 for each token that a span may touch. Rows of
masked_lm have neither.

This module imports only the standard library.
"""

import json
from dataclasses import asdict, dataclass
from hashlib import sha256
from math import inf
from pathlib import Path

from rotary_foundry.utils.errors import DataError
from rotary_foundry.utils.json_text import parse_json
from rotary_foundry.utils.wording import nearest

TASK_FILE = "task.json"
COLUMNS = {  # the columns that the rows of each kind have in addition to those of a text
    "classification": ("targets",),
    "regression": ("targets",),
    "choice": ("targets",),
    "answer": ("targets", "allowed"),
    "entities": ("targets", "allowed"),
    "masked_lm": (),
}
FEWEST_LABELS = {"classification": 2, "entities": 1}  # the other kinds have none


@dataclass(frozen=True)
class Task:
    """A task of a multi-task stage: its kind, its labels and its weight.

    Raises:
        DataError: a value is wrong; the message names the key.
    """

    kind: str  # one of COLUMNS
    labels: tuple[str, ...]  # of classification, and the kinds of entities; targets hold their indices
    weight: float  # the share of the stage's blocks is proportional to it

    def __post_init__(self):
        if self.kind not in COLUMNS:
            raise DataError(f"kind: '{self.kind}' is not known; {nearest(str(self.kind), COLUMNS)}")
        fewest = FEWEST_LABELS.get(self.kind, 0)
        if len(self.labels) < fewest or (self.labels and not fewest):
            expected = f"at least {fewest}" if fewest else "none"
            raise DataError(f"labels: a task of kind {self.kind} has {expected}, got {len(self.labels)}")
        if len(set(self.labels)) < len(self.labels):
            twice = next(label for label in self.labels if self.labels.count(label) > 1)
            raise DataError(f"labels: '{twice}' is given twice; give each label once")
        if isinstance(self.weight, bool) or not isinstance(self.weight, int | float) or not 0 < self.weight < inf:
            raise DataError(f"weight: {self.weight!r} is not positive and finite")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the task's rows in addition to those of a text."""
        return COLUMNS[self.kind]

    @property
    def digest(self) -> str:
        """A digest of kind, labels and weight, which a run keeps in `rows.json` for each of its tasks."""
        return sha256(repr(self).encode()).hexdigest()[:16]

    def write(self, directory: str | Path) -> None:
        """Write `task.json` into `directory`, the folder of the task."""
        content = json.dumps(asdict(self), ensure_ascii=False, indent=2)
        (Path(directory) / TASK_FILE).write_text(content + "\n", encoding="utf-8")

    @classmethod
    def read(cls, directory: str | Path) -> "Task":
        """Read `task.json` from `directory`.

        Raises:
            DataError: the file is missing or broken, or a value is wrong; the message names the file and what to do.
        """
        path = Path(directory) / TASK_FILE
        remedy = "prepare the data again with `python data_prep CONFIG`"
        try:
            content = parse_json(path.read_text(encoding="utf-8"))
            return cls(content["kind"], tuple(map(str, content["labels"])), content["weight"])
        except FileNotFoundError:
            raise DataError(
                f"{path}: no such file, so '{path.parent.name}' is no task; for a multi-task stage, prepare the data "
                "with `python data_prep CONFIG` and `kind:` for each source"
            ) from None
        except DataError as error:
            raise DataError(f"{path}: {error}; {remedy}") from None
        except KeyError as error:
            raise DataError(f"{path}: key {error} is missing; {remedy}") from None
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{path}: broken ({error}); {remedy}") from None
