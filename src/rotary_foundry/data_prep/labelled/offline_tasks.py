"""Tasks from what every Python installation holds, so that fine-tuning can be tried, and models compared, offline.

- `package`: of which package is this docstring? The standard library or one of seven scientific packages.
- `belongs`: does this docstring belong to this function? Of every second function it is another one's docstring, of
  the same module, so that words of the module give nothing away; the function's own name is there for both.

Labels are facts and made by no one. Modules are held out whole, by the hash of their name, so that no function of a
validation module was seen. What of it a nano model was pretrained on, it has seen without labels.
"""

import ast
import hashlib
import random
import warnings
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from rotary_foundry.data_prep.readers.installed_packages import SCIENTIFIC_PACKAGES, installed_files
from rotary_foundry.utils.errors import DataError

PATH = "python-installation"  # in the place of a data set's name
EXAMPLES = 1000  # of a task, both splits together
HELD_OUT = 5  # of so many modules one
PER_MODULE = 2  # examples at most, that large modules do not prevail
SHORTEST, LONGEST = 60, 1500  # characters of a docstring, and of a function without it


def rows(task: str, split: str) -> list[tuple[str, dict]]:
    """The examples of a task's split, each with the module that it is from.

    Args:
        task: package or belongs.
        split: train or validation.

    Raises:
        DataError: there is no such task or split.
    """
    if task not in (tasks := _tasks()) or split not in ("train", "validation"):
        raise DataError(
            f"{PATH}: no '{task}' with a split '{split}'; there are package and belongs, train and validation"
        )
    return [(name, row) for name, row in tasks[task] if _held_out(name) == (split == "validation")]


def source_files() -> list[Path]:
    """Return the files that the tasks may be made of."""
    return [file for _, file in installed_files(SCIENTIFIC_PACKAGES)]


@cache
def _tasks() -> dict[str, list[tuple[str, dict]]]:
    found: dict[str, list[tuple[str, dict]]] = {"package": [], "belongs": []}
    for name, file in installed_files(SCIENTIFIC_PACKAGES):
        if min(map(len, found.values())) >= EXAMPLES:
            break
        functions = list(_documented(file.read_bytes()))
        random.Random(name).shuffle(functions)
        chosen = functions[:PER_MODULE]
        found["package"] += [(name, {"text": doc, "label": name.split("/")[0]}) for doc, _ in chosen]
        if len(functions) > len(chosen):
            found["belongs"] += [(name, row) for row in _pairs(chosen, functions[len(chosen)][0])]
    return {task: examples[:EXAMPLES] for task, examples in found.items()}


def _pairs(functions: list[tuple[str, str]], other: str) -> Iterator[dict]:
    for index, (doc, source) in enumerate(functions):
        yield {"docstring": other if index % 2 else doc, "function": source, "label": ("yes", "no")[index % 2]}


def _held_out(name: str) -> bool:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) % HELD_OUT == 0


def _documented(content: bytes) -> Iterable[tuple[str, str]]:
    """(docstring, source without it) of each function of a module."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and (doc := ast.get_docstring(node)) and len(node.body) > 1:
            node.body = node.body[1:]
            source = ast.unparse(node)
            if min(len(doc), len(source)) >= SHORTEST:
                yield _cut(doc), _cut(source)


def _cut(text: str) -> str:
    return text[:LONGEST].encode("utf-8", "replace").decode()  # half a surrogate pair, of a literal, is none in UTF-8
