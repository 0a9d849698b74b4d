"""Make the tasks of a rehearsal whose corpus is missing, so that every kind of head is rehearsed.

A recipe names its tasks, but only their data say what kind each is. So the tasks get the kinds in KINDS in turn.
Tasks that a stage of plain text draws as well are masked LM. The labelled examples are made of names of Python's
modules. Their texts are up to as long as the longest row, where spans take the most memory.
"""

import json
import sys
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from rotary_foundry.data_prep.labelled.data_config import DataConfig
from rotary_foundry.data_prep.task_config import TEXT, TaskConfig
from rotary_foundry.recipe import Recipe

KINDS = (TEXT, "classification", "regression", "choice", "answer", "entities")
FORMS = {"choice": "c3", "answer": "cmrc2018", "entities": "cluener"}
EXAMPLES = {"train": 48, "dev": 12}
LABELS = ("even", "odd")
CHOICES = ["a", "b", "c", "d"]  # short, as all share a row; four, as the reader of C3 adds longer ones to fewer


def rehearsal_tasks(recipe: Recipe, folder: Path) -> dict[str, TaskConfig]:
    """Return the tasks of a recipe with multi-task stages, by name, and write the examples of the labelled ones.

    Args:
        recipe: the rehearsal's recipe; its sources are the tasks.
        folder: the folder for the files of examples, one subfolder per task.
    """
    texts = set()
    for stage, config in recipe.stages.items():
        if recipe.objective_of(stage).block_size is None:
            texts |= set(config.mixture or ())
    kinds = cycle(KINDS[1:] if texts else KINDS)
    tasks = {name: TaskConfig(TEXT if name in texts else next(kinds)) for name in recipe.data.sources}
    longest = max(stage.row_length for stage in recipe.stages.values())
    for number, (name, task) in enumerate(tasks.items()):
        if task.kind == TEXT:
            task.sources = [text_source(name)]
        else:
            task.data = _write_examples(task.kind, folder / name, longest, number)
    return tasks


def text_source(task: str) -> str:
    """Return the name of the source that has the texts of a masked LM task."""
    return f"{task}_text"


def _write_examples(kind: str, folder: Path, longest: int, number: int) -> DataConfig:
    """Write the examples of a task in one of the forms that preparation reads."""
    form = FORMS.get(kind)
    where = folder if form is None else folder / form
    where.mkdir(parents=True)
    files = {}
    for split, count in EXAMPLES.items():
        generator = np.random.default_rng((number, count))
        rows = [_row(kind, _words(generator, longest), index) for index in range(count)]
        whole = {"data": [{"title": "", "paragraphs": rows}]} if kind == "answer" else rows
        in_lines = form is None or kind == "entities"
        text = "".join(json.dumps(row) + "\n" for row in rows) if in_lines else json.dumps(whole)
        files[split] = where / f"{split}.{'jsonl' if form is None else 'json'}"
        files[split].write_text(text, encoding="utf-8")
    if form is None:
        return DataConfig(train=str(files["train"]), validation=[str(files["dev"])])
    return DataConfig(path=str(folder), form=form)


def _words(generator: np.random.Generator, longest: int) -> list[str]:
    return generator.choice(sorted(sys.stdlib_module_names), generator.integers(4, longest)).tolist()


def _row(kind: str, words: list[str], index: int) -> Any:
    text, last = " ".join(words), words[-1]
    start = len(text) - len(last)
    match kind:
        case "classification":
            return {"text": text, "label": LABELS[index % 2]}
        case "regression":
            return {"text": text, "label": len(words) / 100}
        case "choice":
            return [[text], [{"question": "?", "choice": CHOICES, "answer": CHOICES[index % len(CHOICES)]}], str(index)]
        case "answer":
            answers = [{"text": last, "answer_start": start}]
            question = {"question": "last", "id": str(index), "answers": answers}
            return {"context": text, "id": str(index), "qas": [question]}
        case "entities":
            return {"text": text, "label": {"name": {last: [[start, len(text) - 1]]}}}
