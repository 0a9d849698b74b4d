"""The keys under `tasks:` of a data YAML, and the checks that need no data.

A YAML with tasks makes the data of a multi-task stage. Its `sources` are the texts of the tasks of kind masked_lm. The
other tasks have labelled examples; the keys that locate them are those of fine-tuning.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite

from rotary_foundry.data.rows import SHORTEST
from rotary_foundry.data.task_file import COLUMNS, FEWEST_LABELS
from rotary_foundry.data_prep.labelled.data_config import (
    FORMS,
    LONG_DOCUMENTS,
    PACKAGES,
    DataConfig,
    columns_complaint,
)
from rotary_foundry.utils.wording import nearest

TEXT = "masked_lm"
TYPES = {"classification": "sequence"}  # a kind's name in `labelled/`, if it is different there
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")  # names a folder and a head


@dataclass
class TaskConfig:
    """A task of a multi-task stage."""

    kind: str  # one of data/task_file.py's
    data: DataConfig = field(default_factory=DataConfig)  # the examples; with `validation: []` some are held out
    labels: list[str] = field(default_factory=list)  # in the order of their numbers; default: from the training data
    max_seq_len: int | None = None  # the most tokens of a text, a window or a choice; default: the shortest row length
    long_documents: str = "truncate"  # or refuse
    weight: float = 1.0  # the share of the stage's blocks is proportional to it; a stage's mixture replaces it
    sources: list[str] = field(default_factory=list)  # of masked_lm: its texts; default: all sources

    @property
    def type(self) -> str:
        """The name of the kind in `labelled/`."""
        return TYPES.get(self.kind, self.kind)


def located(task: TaskConfig, data_path: str | None) -> TaskConfig:
    """Return the task with its data in `data_path`, if the task names no path of its own."""
    return replace(task, data=replace(task.data, path=task.data.path or data_path))


def sources_of(task: TaskConfig, sources: Collection[str]) -> list[str]:
    """Return the sources of a task; a labelled task has none."""
    return (task.sources or list(sources)) if task.kind == TEXT else []


def task_problems(
    tasks: Mapping[str, TaskConfig], sources: Collection[str], row_lengths: Sequence[int], data_path: str | None
) -> Iterable[tuple[str, str]]:
    """Yield (key, what is wrong and what would be right)."""
    for name, task in tasks.items():
        key = f"tasks.{name}"
        if not NAME.fullmatch(name) or name == "tokenizer":
            yield key, "the name becomes a folder and a head; use letters, digits, '_' and '-', and not 'tokenizer'"
        if name in sources:
            yield key, "there is a source of this name; rename the task"
        if task.kind not in COLUMNS:
            yield f"{key}.kind", f"'{task.kind}' is not known; {nearest(task.kind, COLUMNS)}"
            return
        if not (isfinite(task.weight) and task.weight > 0):
            yield f"{key}.weight", f"expected a number above 0, got {task.weight}"
        yield from _label_problems(f"{key}.labels", task)
        if task.kind == TEXT:
            yield from _text_problems(key, task, sources)
        else:
            yield from _data_problems(key, located(task, data_path), min(row_lengths, default=SHORTEST))
    used = Counter(source for task in tasks.values() for source in sources_of(task, sources))
    for source in sources:
        if used[source] != 1:
            yield (
                f"sources.{source}",
                f"expected to be of one task of kind {TEXT}, found {used[source]}; name it under one task's `sources`",
            )


def _label_problems(key: str, task: TaskConfig) -> Iterable[tuple[str, str]]:
    fewest = FEWEST_LABELS.get(task.kind)
    if task.labels and fewest is None:
        yield key, f"a task of kind {task.kind} has no labels; remove them"
    elif task.labels and len(task.labels) < fewest:
        yield key, f"expected at least {fewest} labels, got {task.labels}; there is nothing to learn"
    if len(set(task.labels)) < len(task.labels):
        yield key, f"expected different labels, got {task.labels}; remove the duplicates"


def _text_problems(key: str, task: TaskConfig, sources: Collection[str]) -> Iterable[tuple[str, str]]:
    if task.data != DataConfig():
        yield f"{key}.data", f"a task of kind {TEXT} has no labelled examples; name its texts under `sources`"
    if task.max_seq_len is not None:
        yield f"{key}.max_seq_len", f"a task of kind {TEXT} fills its rows; remove it"
    for source in task.sources:
        if source not in sources:
            yield f"{key}.sources", f"no source '{source}'; there are {', '.join(sources) or 'none'}"
    if not sources:
        yield key, "there are no `sources` to take its texts from"


def _data_problems(key: str, task: TaskConfig, shortest: int) -> Iterable[tuple[str, str]]:
    data, form = task.data, task.data.form
    if task.sources:
        yield f"{key}.sources", f"only a task of kind {TEXT} has sources; its examples are under `data`"
    if task.max_seq_len is not None and not SHORTEST <= task.max_seq_len <= shortest:
        yield (
            f"{key}.max_seq_len",
            f"expected {SHORTEST} to {shortest}, the tokens of the shortest row, got {task.max_seq_len}",
        )
    if task.long_documents not in LONG_DOCUMENTS:
        yield f"{key}.long_documents", f"expected {' or '.join(LONG_DOCUMENTS)}, got '{task.long_documents}'"
    if complaint := columns_complaint(data):
        yield f"{key}.data.text", complaint
    if not data.validation and task.kind == "choice":
        yield f"{key}.data.validation", "expected at least one split, got none; no share of choices can be held out"
    if data.test:
        yield f"{key}.data.test", "a stage predicts nothing; remove it"
    if form is not None and form not in FORMS:
        yield f"{key}.data.form", f"'{form}' is not known; {nearest(form, FORMS)}"
    elif form is not None and FORMS[form] != task.type:
        kinds = {type_: kind for kind, type_ in TYPES.items()}
        yield f"{key}.kind", f"expected {kinds.get(FORMS[form], FORMS[form])}, the kind of data.form={form}"
    elif form is None and task.kind not in ("classification", "regression"):
        there = ", ".join(name for name, type_ in FORMS.items() if type_ == task.type)
        yield f"{key}.data.form", f"a task of kind {task.kind} needs one of {there}, got none"
    if form in PACKAGES and data.path is None:
        yield f"{key}.data.path", f"expected the folder in which the package of {form} is unpacked, got none"
