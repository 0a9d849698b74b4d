"""Read the sources, docstrings and READMEs of the Python installation.

These readers need no network and no download, so a whole recipe can run on real text anywhere. Sources are parsed and
never imported, because importing runs code. Files are taken in the order of the hashes of their names, up to
`BYTE_BUDGET`. So the choice is spread over all packages, is the same every time, and changes little when a package is
added. READMEs are those of the packages that this project requires, not of other installed packages. With a path, a
reader takes all Python files there, as the readers of files do.
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

# Folders of an installation whose files are tests, copies of other packages, or code that nobody writes today.
LEFT_OUT = {
    *("test", "tests", "testing", "idle_test"),
    *("_bundled", "_vendor", "dist-packages", "site-packages"),
    *("encodings", "idlelib", "lib2to3", "distutils", "pydoc_data", "__pycache__"),
}


def parts(source: SourceConfig) -> list[Part]:
    """Return one part, the files of the installation; with a path, the parts of its files."""
    return listing.parts(source) if source.path else [{}]


def fingerprint(source: SourceConfig) -> str:
    if source.path:
        return listing.fingerprint(source)
    if source.reader == "distribution_readmes":
        return listing.digest((name, len(text)) for name, text in _readmes().items())
    return listing.digest((name, file.stat().st_size) for name, file in installed_files(PACKAGES[source.reader]))


def read(source: SourceConfig, part: Part, bad: BadInput) -> Iterator[Document]:
    if source.reader == "distribution_readmes":
        yield from within_budget(Document(text, name) for name, text in _readmes().items())
    elif source.path:
        yield from read_files(FORMATS[source.reader], source, part, bad)
    else:
        reader = FORMATS[source.reader](".", "text", bad)
        files = installed_files(PACKAGES[source.reader])
        yield from within_budget(found for name, file in files for found in reader.documents(file.read_bytes(), name))


class PythonFiles(Text):
    """Reads one document per file, in the encoding that the file declares."""

    def documents(self, content: bytes, path: str) -> Iterator[Document]:
        try:
            encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
            text = io.TextIOWrapper(io.BytesIO(content), encoding).read()
        except (SyntaxError, UnicodeDecodeError) as error:
            self.bad.add(path, f"not text in the encoding that it declares: {error}")
            return
        yield from self.document(text, path)


class PythonDocstrings(Text):
    """Reads one document per file with docstrings: all of its docstrings, each after its qualified name.

    A file that this Python cannot parse (a template, or the syntax of another version) is without text.
    """

    nothing = "no docstring that this Python can parse"

    def documents(self, content: bytes, path: str) -> Iterator[Document]:
        if text := _docstrings(path, content):
            yield from self.document(text, path)


FORMATS = {"python_docstrings": PythonDocstrings, "python_files": PythonFiles}
PACKAGES = {"python_docstrings": SCIENTIFIC_PACKAGES, "python_files": ()}  # in addition to the standard library


def _readmes() -> dict[str, str]:
    """Return the long description of each distribution that this project requires, ordered by the hash of its name.

    The description of this project is left out, so that the corpus does not change with its README. Those of its extras
    are left out, so that the corpus does not change when the packages for tests or evaluation are installed.
    """
    texts = {}
    for distribution in required_distributions(OURS):
        metadata = distribution.metadata
        texts[canonicalize_name(metadata["Name"])] = str(metadata.get_payload() or metadata.get("Description") or "")
    return {name: encodable(texts[name]) for name in by_hash(texts.keys() - {OURS})}


def required_distributions(by: str) -> Iterator[importlib.metadata.Distribution]:
    """Yield a distribution and all installed distributions that it requires, directly or indirectly."""
    wanted = [(by, "")]
    for name, extra in wanted:  # the loop appends to it
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
    """Yield (name, file) of the Python files of the standard library and of `packages`, by the hash of the name."""
    paths = sysconfig.get_paths()
    roots = {"python": Path(paths["stdlib"])} | {package: Path(paths["purelib"], package) for package in packages}
    files = {}
    for package, root in roots.items():
        for file in root.rglob("*.py"):
            inside = file.relative_to(root)
            # _sysconfigdata holds paths of the machine on which Python was built
            if LEFT_OUT.isdisjoint(inside.parts) and not inside.name.startswith("_sysconfigdata"):
                files[f"{package}/{inside.as_posix()}"] = file
    return ((name, files[name]) for name in by_hash(files))


def by_hash(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())


def within_budget(documents: Iterable[Document]) -> Iterator[Document]:
    """Yield the first documents whose texts have at most BYTE_BUDGET bytes together."""
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
    return encodable("\n\n".join(_docstrings_in(tree, module)))


def _docstrings_in(node: ast.AST, name: str) -> Iterator[str]:
    """Yield the docstrings of a definition and of those inside it, in order, each after its qualified name."""
    definitions = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    if isinstance(node, (ast.Module, *definitions)) and (docstring := ast.get_docstring(node)):
        yield f"{name}\n\n{docstring}"
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.stmt, ast.ExceptHandler)):  # an `if` or a `try` may hold definitions, too
            yield from _docstrings_in(child, f"{name}.{child.name}" if isinstance(child, definitions) else name)


def encodable(text: str) -> str:
    """Replace half surrogate pairs, which UTF-8 cannot encode; escapes in literals or damaged metadata make them."""
    return text.encode("utf-8", "replace").decode()
