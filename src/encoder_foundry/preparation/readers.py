"""Where documents come from: readers by name, each a generator of documents in a fixed order.

Three readers need no network and no download, because every installation already holds what they read: the standard
library's sources, the docstrings of it and of scientific packages, the READMEs in distributions' metadata. They exist
so that the whole recipe can be run on real text anywhere. Sources are parsed and never imported: importing runs code.
What an installation holds is taken in the order of the hash of its name, up to `BYTE_BUDGET`: the choice is spread
over all packages, is the same every time, and barely moves when a package is added. Given a path, a reader takes all
that is there, sorted by name.

JSONL is read with the standard library and not with datatrove's JsonlReader, which logs broken lines and missing
text and goes on (0.9.0, `read_file` and `get_document_from_dict`): a corpus would shrink without anyone being told.
"""

import ast
import glob
import hashlib
import importlib.metadata
import json
import re
import sysconfig
import tokenize
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from encoder_foundry.errors import DataError

BYTE_BUDGET = 6_000_000  # of UTF-8 text, for each reader of the installation

SCIENTIFIC_PACKAGES = ("matplotlib", "networkx", "numpy", "pandas", "sympy", "torch", "transformers")

# Folders of an installation whose files are tests, copies of other packages, or not what anyone writes today.
LEFT_OUT = {
    *("test", "tests", "testing", "idle_test"),
    *("_bundled", "_vendor", "dist-packages", "site-packages"),
    *("encodings", "idlelib", "lib2to3", "distutils", "pydoc_data", "__pycache__"),
}


@dataclass
class SourceConfig:
    """A source of a corpus, as a YAML file describes it."""

    reader: str  # a key of READERS
    path: str | None = None  # what to read; which readers take or need one is in READERS
    text_column: str | None = None  # the column that holds the text, in files that have columns; "text" if not given


@dataclass(frozen=True)
class Document:
    """A text and where it came from."""

    id: str  # the path within the source, or file:line; for people to find it by
    text: str


@dataclass(frozen=True)
class Reader:
    """A function that reads a source, and which keys beside `reader` it understands."""

    read: Callable[[SourceConfig], Iterator[Document]]
    path: str  # "required", "optional" or "none"
    text_column: bool = False


def read_python_files(source: SourceConfig) -> Iterator[Document]:
    """One document for each `.py` file under `path`; without a path, of the standard library.

    Raises:
        DataError: a file is not text in the encoding it declares.
    """
    files = _files_under(source.path) if source.path else _installed_files(())
    documents = (Document(name, _python_text(file)) for name, file in files)
    yield from documents if source.path else _within_budget(documents)


def read_python_docstrings(source: SourceConfig) -> Iterator[Document]:
    """One document for each `.py` file under `path` that has docstrings: all of them, each under its qualified name.
    Without a path, of the standard library and of those of SCIENTIFIC_PACKAGES that are installed.

    A file that this Python cannot parse, a template or another version's syntax, has no docstrings.
    """
    files = _files_under(source.path) if source.path else _installed_files(SCIENTIFIC_PACKAGES)
    documents = (Document(name, text) for name, file in files if (text := _docstrings(name, file)))
    yield from documents if source.path else _within_budget(documents)


def read_distribution_readmes(source: SourceConfig) -> Iterator[Document]:
    """One document for each installed distribution: the long description in its metadata.

    Our own is left out: the corpus must not change when this project's README does.
    """
    texts: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        metadata = distribution.metadata
        name = re.sub(r"[-_.]+", "-", metadata.get("Name") or "").lower()
        if name and name != "encoder-foundry":
            texts.setdefault(name, str(metadata.get_payload() or metadata.get("Description") or ""))
    yield from _within_budget(Document(name, _encodable(texts[name])) for name in _by_hash(texts))


def read_jsonl(source: SourceConfig) -> Iterator[Document]:
    """One document for each line of the file `path`, or of the files that it matches as a glob. Blank lines are none.

    Raises:
        DataError: a line is not a JSON object with text in the text column; the message names file and line.
    """
    for file in matches(source.path):
        with open(file, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    where = f"{file}:{number}"
                    yield Document(where, _jsonl_text(line, where, source.text_column or "text"))


READERS = {
    "python_files": Reader(read_python_files, path="optional"),
    "python_docstrings": Reader(read_python_docstrings, path="optional"),
    "distribution_readmes": Reader(read_distribution_readmes, path="none"),
    "jsonl": Reader(read_jsonl, path="required", text_column=True),
}


def matches(path: str) -> list[str]:
    """What the path or glob `path` stands for, sorted; empty when there is no such thing."""
    return [path] if Path(path).exists() else sorted(glob.glob(path, recursive=True))


def _files_under(path: str) -> Iterator[tuple[str, Path]]:
    """(name, file) of each Python file that `path` names or holds, sorted."""
    for root in map(Path, matches(path)):
        for file in [root] if root.is_file() else sorted(root.rglob("*.py")):
            yield file.as_posix(), file


def _installed_files(packages: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """(name, file) of each Python file of the standard library and of the installed `packages`, by hash of name."""
    paths = sysconfig.get_paths()
    roots = {"python": Path(paths["stdlib"])} | {package: Path(paths["purelib"], package) for package in packages}
    files = {}
    for package, root in roots.items():
        for file in root.rglob("*.py"):
            inside = file.relative_to(root)
            # _sysconfigdata holds the paths of the machine that Python was built on.
            if LEFT_OUT.isdisjoint(inside.parts) and not inside.name.startswith("_sysconfigdata"):
                files[f"{package}/{inside.as_posix()}"] = file
    return ((name, files[name]) for name in _by_hash(files))


def _by_hash(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())


def _within_budget(documents: Iterable[Document]) -> Iterator[Document]:
    """The first documents that together have at most BYTE_BUDGET bytes of text."""
    left = BYTE_BUDGET
    for document in documents:
        left -= len(document.text.encode())
        if left < 0:
            return
        yield document


def _python_text(file: Path) -> str:
    try:
        with tokenize.open(file) as source:
            return source.read()
    except (SyntaxError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not text in the encoding that it declares: {error}") from None


def _docstrings(name: str, file: Path) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return ""
    module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".").removeprefix("python.")
    return _encodable("\n\n".join(_docstrings_in(tree, module)))


def _docstrings_in(node: ast.AST, name: str) -> Iterator[str]:
    """The docstrings of a module, class or function and of all it defines, in order, each after its qualified name."""
    definitions = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    if isinstance(node, (ast.Module, *definitions)) and (docstring := ast.get_docstring(node)):
        yield f"{name}\n\n{docstring}"
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.stmt, ast.ExceptHandler)):  # an `if` or a `try` may hold definitions, too
            yield from _docstrings_in(child, f"{name}.{child.name}" if isinstance(child, definitions) else name)


def _encodable(text: str) -> str:
    """Escapes in string literals and damaged metadata can give half a surrogate pair, which UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode()


def _jsonl_text(line: bytes, where: str, text_column: str) -> str:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8: {error.reason} at byte {error.start} of the line") from None
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: a JSON object is wanted on each line, this is {line.strip()[:40].decode()!r}")
    if text_column not in row:
        raise DataError(f"{where}: no column '{text_column}'; the columns there are {', '.join(map(repr, row))}")
    text = row[text_column]
    if not isinstance(text, str):
        raise DataError(f"{where}: column '{text_column}' holds {json.dumps(text)[:40]}, which is not text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: column '{text_column}' holds half a surrogate pair, which is no text") from None
    return text
