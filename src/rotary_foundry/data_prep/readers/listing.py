"""List the files of a source, local or in a store, and group them into parts."""

import hashlib
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable
from glob import has_magic
from typing import TYPE_CHECKING

from fsspec.utils import glob_translate

from rotary_foundry.data_prep.readers import MOST_PARTS, PART_BYTES, READERS, Part, SourceConfig
from rotary_foundry.utils import object_store
from rotary_foundry.utils.errors import DataError, check_utf_8

if TYPE_CHECKING:
    from datatrove.io import DataFolder

SHOWN = 8  # endings that an error names


def parts(source: SourceConfig) -> list[Part]:
    """Group files, in the order of their names, into parts of about equal size; files are not divided."""
    folder, files = listing(source)
    return [{"folder": folder, "files": group} for group in groups({name: files[name]["size"] for name in files})]


def groups(sizes: dict[str, int]) -> list[list[str]]:
    """Group names, in their order, so that the sizes of each group add up to about that of a part."""
    size = part_bytes(sum(sizes.values()))
    found: list[list[str]] = []
    room = 0
    for name, bytes_ in sizes.items():
        if bytes_ > room or not found:
            found.append([])
            room = size
        found[-1].append(name)
        room -= bytes_
    return found


def part_bytes(total: float) -> float:
    """Return the size in bytes of a part, for a source of `total` bytes."""
    return max(PART_BYTES, total / MOST_PARTS)


def fingerprint(source: SourceConfig) -> str:
    _, files = listing(source)
    return digest((name, info["size"], info.get("e_tag") or info.get("mtime")) for name, info in files.items())


def digest(values: Iterable[object]) -> str:
    """Return a hexadecimal digest of the representations of `values`."""
    hashed = hashlib.sha256()
    for value in values:
        hashed.update(f"{value!r}\n".encode("utf-8", "surrogateescape"))
    return hashed.hexdigest()[:16]


def listing(source: SourceConfig) -> tuple[str, dict[str, dict]]:
    """Return the folder of a source's path, as the user wrote it, and the files to read, by their names in it.

    A folder gives the files with the source's `endings`, or else the reader's extensions, in any case and at any depth.
    A path or a glob gives all files that it names, with any extension. Hidden files are not read, because systems and
    editors write them, not the user. Links to folders are followed. Links to nothing are listed as files of no bytes.

    Raises:
        DataError: there are no such files, one has a name that is not UTF-8, or they cannot be listed.
    """
    path = source.path.rstrip("/")
    if not path:
        raise DataError(f"'{source.path}': expected a file, a folder below the root, or a pattern")
    with object_store.named(path):
        store = object_store.filesystem(path)
        if store.isfile(path):
            folder, name = posixpath.split(path)
            check_utf_8(path)
            return folder, {name: object_store.data_folder(folder).info(name)}
        if store.isdir(path):
            folder = path
            extensions = tuple(map(str.lower, source.endings or READERS[source.reader].extensions))
            inside = object_store.data_folder(folder)
            found = inside.find("", detail=True) if object_store.is_remote(path) else _with_linked(inside, folder)
        elif has_magic(path):
            folder, pattern = _before_magic(path)
            extensions = ("",)
            inside = object_store.data_folder(folder)
            if object_store.is_remote(path):
                found = inside.glob(pattern, detail=True)
            else:
                found = _with_linked(inside, folder, pattern)
        else:
            raise DataError(f"{path}: nothing is there")
    dangling = set()
    for name, info in found.items():
        if not info.get("islink"):
            continue
        if inside.isfile(name):  # a Hugging Face cache consists of links
            found[name] = inside.info(name)  # of the link's target
        elif not inside.exists(name):
            found[name] = info | {"type": "file", "size": 0}
            dangling |= {name} if has_no_ending(name) else set()  # perhaps one to a folder
    there = {name: info for name, info in found.items() if info["type"] == "file" and not _is_hidden(name)}
    files = {name: info for name, info in there.items() if name in dangling or name.lower().endswith(extensions)}
    if not files:
        what = f"ending in {', '.join(extensions)}" if extensions != ("",) else "of that name"
        raise DataError(f"{path}: no files {what} for the reader {source.reader}{_endings(there)}")
    for name in files:
        check_utf_8(posixpath.join(folder, name))  # names of files are ids in tables
    return folder, dict(sorted(files.items(), key=lambda file: file[0].split("/")))


def _with_linked(inside: "DataFolder", folder: str, pattern: str = "**") -> dict[str, dict]:
    """List the files of a local folder that match `pattern`, and those in folders that it links to, each folder once.

    A link to a folder that holds the link is not followed, because it leads round in a circle.

    Raises:
        DataError: the folder is the root of the file system.
        OSError: a folder cannot be listed.
    """
    if os.path.realpath(folder or ".") == "/":
        raise DataError(f"'{posixpath.join(folder, pattern)}': expected a folder below the root, or a pattern there")
    depth = None if "**" in pattern else pattern.count("/") + 1
    matches = re.compile(glob_translate(pattern)).match
    found: dict[str, dict] = {}
    read: set[str] = set()
    folders = [("", (os.path.realpath(folder or "."),))]  # to list, with the folders on the way, links resolved
    for name, way in folders:  # the loop appends to it
        left = None if depth is None else depth - name.count("/") - bool(name)
        if left == 0:
            continue
        there = inside.find(name, maxdepth=left, detail=True, on_error="raise")
        real = {each: os.path.realpath(posixpath.join(folder, posixpath.dirname(each))) for each in there}
        new = {each: info for each, info in there.items() if matches(each) and real[each] not in read}
        read |= {real[each] for each in new}
        found |= new
        for link in sorted(each for each in there if there[each]["islink"] and inside.isdir(each)):
            target = os.path.realpath(posixpath.join(folder, link))
            circular = any(f"{one}/".startswith(f"{target}/") for one in (*way, real[link]))
            if not circular and not _is_hidden(link):
                folders.append((link, (*way, target)))
    return found


def _is_hidden(name: str) -> bool:
    return any(part[0] == "." for part in name.split("/"))


def has_no_ending(name: str) -> bool:
    return not posixpath.splitext(name)[1]


def _endings(names: Iterable[str]) -> str:
    """Describe the skipped files by their endings, the most frequent first."""
    counts = Counter(sorted(posixpath.splitext(name)[1] or "no ending" for name in names)).most_common()
    shown = ", ".join(f"{ending} ({count:,})" for ending, count in counts[:SHOWN])
    more = f" and {len(counts) - SHOWN} more" if len(counts) > SHOWN else ""
    return f"; those there end in {shown}{more}" if counts else ""


def _before_magic(path: str) -> tuple[str, str]:
    """Split a glob into its folder and its pattern: data/*/a?.csv into ("data", "*/a?.csv")."""
    pieces = path.split("/")
    first = next(place for place, piece in enumerate(pieces) if has_magic(piece))
    return "/".join(pieces[:first]) or ("/" if path.startswith("/") else ""), "/".join(pieces[first:])
