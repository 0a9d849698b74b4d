"""Code search without a download: find a function's body from its docstring, in the standard library.

The query is the docstring's first paragraph; the document is the function's source without the docstring. The filters
follow CodeSearchNet (arXiv 1909.09436): no queries of less than three words, no functions of less than three lines, no
special methods, no names with `test` in them. CodeSearchNet drops near-duplicates; this drops every pair whose query,
document or name occurs twice: eleven functions have the docstring "Emit a record.", and none is the right answer.

The test pairs come from whole top-level modules (`email`, not `email.message`), chosen by the hash of their name. No
function of these modules is in the training pairs. So they are held out of this fine-tuning. But an encoder pretrained
on the standard library, as by `make nano`, has read them all as text. The order within a split is also by hash, so the
first hundred are a sample of all modules. For one version of Python the set is always the same.
"""

import ast
import hashlib
import textwrap
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

from rotary_foundry.data_prep.readers.installed_packages import installed_files

HELD_OUT = 0.25  # of the top-level modules
PARTS = ("name", "query", "document")
FEWEST_WORDS, FEWEST_LINES = 3, 3  # as in CodeSearchNet

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Pair:
    """A function of the standard library.

    Attributes:
        name: `email.message.Message.get_payload`
        query: the first paragraph of its docstring, on one line.
        document: its source without the docstring, not indented.
    """

    name: str
    query: str
    document: str

    @property
    def module(self) -> str:
        return self.name.partition(".")[0]


def code_search_pairs(split: Literal["train", "test"]) -> list[Pair]:
    """Return all pairs of a split, always in the same order. The first call takes some seconds."""
    return [pair for pair in _pairs() if is_held_out(pair.module) == (split == "test")]


def is_held_out(module: str) -> bool:
    """Return whether a top-level module's functions are test pairs."""
    return _hash(module) < HELD_OUT


@cache
def _pairs() -> list[Pair]:
    found = list(_functions())
    counts = [Counter(getattr(pair, part) for pair in found) for part in PARTS]
    unique = (p for p in found if all(c[getattr(p, part)] == 1 for c, part in zip(counts, PARTS, strict=True)))
    return sorted(unique, key=lambda pair: _hash(pair.name))


def _functions() -> Iterator[Pair]:
    for name, file in installed_files(()):
        module = name.removeprefix("python/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        with tokenize.open(file) as stream:
            text = stream.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(text)
        yield from _functions_in(tree, module, text.split("\n"))


def _functions_in(node: ast.AST, name: str, lines: list[str]) -> Iterator[Pair]:
    for child in ast.iter_child_nodes(node):
        inside = f"{name}.{child.name}" if isinstance(child, (ast.ClassDef, Function)) else name
        if isinstance(child, Function) and (pair := _pair(child, inside, lines)):
            yield pair
        if isinstance(child, (ast.stmt, ast.ExceptHandler)):  # an `if` or a `try` may also contain definitions
            yield from _functions_in(child, inside, lines)


def _pair(function: Function, name: str, lines: list[str]) -> Pair | None:
    special = function.name.startswith("__") and function.name.endswith("__")
    docstring = ast.get_docstring(function)
    if not docstring or special or "test" in function.name.lower():
        return None
    query = " ".join(docstring.partition("\n\n")[0].split())
    written = function.body[0]
    kept = lines[function.lineno - 1 : written.lineno - 1] + lines[written.end_lineno : function.end_lineno]
    document = textwrap.dedent("\n".join(kept)).strip()
    enough = len(query.split()) >= FEWEST_WORDS and len([line for line in kept if line.strip()]) >= FEWEST_LINES
    return Pair(name, query, document) if enough else None


def _hash(text: str) -> float:
    """Return a hash from 0 to 1, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
