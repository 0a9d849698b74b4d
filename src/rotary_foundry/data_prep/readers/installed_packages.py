"""Python's own: the sources, docstrings and READMEs that every installation holds.

These readers need no network and no download. They exist so that the whole recipe can be run on real text anywhere.
Sources are parsed and never imported: importing runs code. What an installation holds is taken in the order of the
hash of its name, up to `BYTE_BUDGET`: the choice is spread over all packages, is the same every time, and barely moves
when a package is added. READMEs are those of the packages that this one requires, whatever else is installed beside
them. Given a path, a reader takes all Python files that are there, as the readers of files do.
"""

import ast
import hashlib
import importlib.metadata
import io
import sysconfig
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from datatrove.data import Document
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from rotary_foundry.data_prep.readers import BadInput, Part, SourceConfig, listing
from rotary_foundry.data_prep.readers.files import Text, read_files

BYTE_BUDGET = 6_000_000  # of UTF-8 text, for each reader of the installation

OURS = "rotary-foundry"
SCIENTIFIC_PACKAGES = ("matplotlib", "networkx", "numpy", "pandas", "sympy", "torch", "transformers")

# Folders of an installation whose files are tests, copies of other packages, or not what anyone writes today.
LEFT_OUT = {
    *("test", "tests", "testing", "idle_test"),
    *("_bundled", "_vendor", "dist-packages", "site-packages"),
    *("encodings", "idlelib", "lib2to3", "distutils", "pydoc_data", "__pycache__"),
}


def parts(source: SourceConfig) -> list[Part]:
    """What the installation holds is one part."""
    return listing.parts(source) if source.path else [{}]


def fingerprint(source: SourceConfig) -> str:
    if source.path:
        return listing.fingerprint(source)
    if source.reader == "distribution_readmes":
        return listing.digest((name, len(text)) for name, text in _readmes().items())
    return listing.digest((name, file.stat().st_size) for name, file in installed_files(PACKAGES[source.reader]))


def read(source: SourceConfig, part: Part, bad: BadInput) -> Iterator[Document]:
    if source.reader == "distribution_readmes":
        yield from _within_budget(Document(text, name) for name, text in _readmes().items())
    elif source.path:
        yield from read_files(FORMATS[source.reader], source, part, bad)
    else:
        reader = FORMATS[source.reader](".", "text", bad)
        files = installed_files(PACKAGES[source.reader])
        yield from _within_budget(found for name, file in files for found in reader.documents(file.read_bytes(), name))


class PythonFiles(Text):
    """A document a file, in the encoding that it declares."""

    def documents(self, content: bytes, path: str) -> Iterator[Document]:
        try:
            encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
            text = io.TextIOWrapper(io.BytesIO(content), encoding).read()
        except (SyntaxError, UnicodeDecodeError) as error:
            self.bad.add(path, f"not text in the encoding that it declares: {error}")
            return
        yield from self.document(text, path)


class PythonDocstrings(Text):
    """A document for each file that has docstrings: all of them, each under its qualified name.

    A file that this Python cannot parse, a template or another version's syntax, has no docstrings.
    """

    def documents(self, content: bytes, path: str) -> Iterator[Document]:
        if text := _docstrings(path, content):
            yield from self.document(text, path)


FORMATS = {"python_docstrings": PythonDocstrings, "python_files": PythonFiles}
PACKAGES = {"python_docstrings": SCIENTIFIC_PACKAGES, "python_files": ()}  # beside the standard library


def _readmes() -> dict[str, str]:
    """The long description in the metadata of each distribution that ours requires, by hash of name.

    Our own is left out: the corpus must not change when this project's README does. So are those of our extras: nor
    must it change when tests or evaluation are installed.
    """
    texts = {}
    for distribution in _required(OURS):
        metadata = distribution.metadata
        texts[canonicalize_name(metadata["Name"])] = str(metadata.get_payload() or metadata.get("Description") or "")
    return {name: _encodable(texts[name]) for name in _by_hash(texts.keys() - {OURS})}


def _required(by: str) -> Iterator[importlib.metadata.Distribution]:
    """A distribution and all that it requires, directly or not, as far as that is installed."""
    wanted = [(by, "")]
    for name, extra in wanted:  # which grows
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if not extra:
            yield distribution
        for requirement in map(Requirement, distribution.requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                required = canonicalize_name(requirement.name)
                wanted += [one for of in ("", *requirement.extras) if (one := (required, of)) not in wanted]


def installed_files(packages: Iterable[str]) -> Iterator[tuple[str, Path]]:
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


def _docstrings(name: str, content: bytes) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
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
