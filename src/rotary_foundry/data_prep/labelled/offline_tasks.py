"""Make tasks from files of the Python installation, so that users can try fine-tuning and compare models offline.

- `package`: which package does this docstring come from, the standard library or one of seven scientific packages?
- `belongs`: does this docstring belong to this function? Every second function gets the docstring of another function
  in the same module, so that the module's vocabulary gives nothing away; the function's own name is always shown.

The labels are facts, so nobody had to annotate them. Whole modules are held out, by the hash of their name, so training
sees no function of a validation module. A nano model may have been pretrained on such modules, but without labels.
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

PATH = "python-installation"  # replaces the name of a data set
EXAMPLES = 1000  # per task, both splits together
HELD_OUT = 5  # one in five modules
PER_MODULE = 2  # the most examples per module, so that large modules do not dominate
SHORTEST, LONGEST = 60, 1500  # characters of a docstring, and of a function without it


def rows(task: str, split: str) -> list[tuple[str, dict]]:
    """Return the examples of a task's split, each with the name of its module.

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
    """Return the files from which the tasks may be made."""
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
    """Yield (docstring, source without it) of each function of a module."""
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
    return text[:LONGEST].encode("utf-8", "replace").decode()  # UTF-8 cannot encode half a surrogate pair
