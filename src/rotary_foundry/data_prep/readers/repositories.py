"""Read whole repositories: all files of a folder one after the other as one long document.

ProLong (arXiv 2410.02660, section 3.1) found repositories the most plentiful source of long documents. As there, files
are not ordered by what they import, because that would put related files close together. They are ordered by their
paths, folder by folder, so the order is always the same. Before each file is a comment with its path, as in
DeepSeek-Coder's training data (arXiv 2401.14196, section 2.2), and between files an empty line:

    # requests/api.py
    …

With `path`, each folder at `depth` below it is a repository. Files above that depth belong to none and are not read.
A file that is not text (it has a NUL, or bytes that are not UTF-8) is listed as bad input, and the rest of its
repository is read.

Without `path`, the repositories are installed Python packages, and their files those ending in .py (or in `endings`).
Whole packages thus serve as long documents without a download. Packages that this project requires are taken, if they
have SMALLEST to LARGEST bytes, in the order of the hashes of their names and up to `BYTE_BUDGET`. The limits exclude
packages that are not long, and packages that would make up most of the corpus.
"""

import importlib.metadata
from collections.abc import Iterator
from functools import cache

from datatrove.data import Document
from packaging.utils import canonicalize_name

from rotary_foundry.data_prep.readers import BadInput, Part, SourceConfig, listing
from rotary_foundry.data_prep.readers.files import CONVERT, LONGEST, Text
from rotary_foundry.data_prep.readers.installed_packages import (
    LEFT_OUT,
    OURS,
    by_hash,
    encodable,
    required_distributions,
    within_budget,
)
from rotary_foundry.utils import object_store
from rotary_foundry.utils.errors import DataError

SMALLEST, LARGEST = 2**14, 2**18  # bytes of a package that is a document: about 4,000 to 70,000 tokens


def parts(source: SourceConfig) -> list[Part]:
    """Group repositories, in the order of their paths, into parts of about equal size; none of them is divided."""
    if not source.path:
        return [{}]
    folder, sizes = listing.listing(source)
    repositories: dict[str, dict[str, int]] = {}
    for name, info in sizes.items():
        pieces = name.split("/")
        if len(pieces) > _depth(source):
            repositories.setdefault("/".join(pieces[: _depth(source)]), {})[name] = info["size"]
        elif listing.has_no_ending(name) and object_store.is_dangling(f"{folder}/{name}"):
            repositories[name] = {}
    if not repositories:
        raise DataError(
            f"{source.path}: no folders at depth {_depth(source)} with files for the reader repositories; change "
            "'depth', the number of folders from the path down to a repository"
        )
    total = {repository: sum(files.values()) for repository, files in repositories.items()}
    return [
        {"folder": folder, "repositories": {name: repositories[name] for name in group}}
        for group in listing.groups(total)
    ]


def fingerprint(source: SourceConfig) -> str:
    if source.path:
        return listing.fingerprint(source)
    return listing.digest(_packages(source).items())


def read(source: SourceConfig, part: Part, bad: BadInput) -> Iterator[Document]:
    if source.path:
        yield from _documents(part["folder"], part["repositories"], bad)
        return
    root = str(importlib.metadata.distribution(OURS).locate_file(""))
    for document in within_budget(_documents(root, _packages(source), bad)):
        document.id = document.id.removeprefix(f"{root}/")
        yield document


@cache
def packages(endings: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """Return the packages that serve as documents: by name, their files and the bytes of each, in order.

    Tests, copies of other packages and other folders in LEFT_OUT do not belong to a package.
    """
    found: dict[str, dict[str, int]] = {}
    for distribution in required_distributions(OURS):
        root = distribution.locate_file("")
        files: dict[str, int] = {}
        for file in distribution.files or ():
            outside = ".." in file.parts or file.parts[0].endswith((".dist-info", ".data"))
            if file.name.endswith(endings) and not outside and LEFT_OUT.isdisjoint(file.parts):
                path = root / file
                if path.is_file():
                    files[file.as_posix()] = path.stat().st_size
        if SMALLEST <= sum(files.values()) <= LARGEST:
            ordered = sorted(files, key=lambda name: name.split("/"))
            found[canonicalize_name(distribution.metadata["Name"])] = {name: files[name] for name in ordered}
    return {name: found[name] for name in by_hash(found.keys() - {OURS})}


def _documents(folder: str, repositories: dict[str, dict[str, int]], bad: BadInput) -> Iterator[Document]:
    """Yield a document for each repository that has a file with text.

    Args:
        folder: where the files are.
        repositories: by name, their files relative to the folder, with their bytes.
        bad: collects the files that cannot be read, and repositories that are too large.
    """
    reader = Text(folder, "text", bad)
    reader.advice = CONVERT
    for repository, files in repositories.items():
        if not files and reader.is_dangling(repository):
            continue
        if sum(files.values()) > LONGEST:
            bad.add(reader.path(repository), f"files of more than {LONGEST >> 20} MiB together; choose a larger depth")
            continue
        texts = [f"# {name}\n{text.rstrip()}\n" for name in files for text in _texts(reader, name) if text.strip()]
        if texts:
            yield Document(encodable("\n".join(texts)), reader.path(repository))
        else:
            bad.add_without_text(reader.path(repository), "no file with text")


def _texts(reader: Text, name: str) -> Iterator[str]:
    """Yield the text of a file, or nothing if it is empty or cannot be read."""
    if reader.is_dangling(name):
        return
    with object_store.named(reader.path(name)):
        yield from (document.text for document in reader.read_file(name))


def _depth(source: SourceConfig) -> int:
    return 1 if source.depth is None else source.depth


def _packages(source: SourceConfig) -> dict[str, dict[str, int]]:
    return packages(tuple(source.endings or (".py",)))
