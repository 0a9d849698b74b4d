"""Find the files of Streaming that killed runs have left: segments in /dev/shm and lock files in TMPDIR.

The names of both begin with a number, which a data set uses for everything that its processes share. A segment takes
memory until the machine restarts. In a container that starts again in the same pod it is also an obstacle: our numbers
are made from process ids, which are the same again, and Streaming refuses a cache that a segment says is in use.

If any process has mapped a segment (/proc/*/maps), the segment's number is in use, with all its segments and lock
files. This does not show processes of other containers, so if containers share /dev/shm (`--ipc=host`), clean on the
host. Files of other users are left alone.

A lock file is removed unless it is held (utils/lock_files.py). So a run on another machine that shares TMPDIR is not
harmed, although its segments are not visible here.

A process that ends normally removes both (compat/streaming.py), so these files are from processes that were killed.

Streaming's own `clean_stale_shared_memory` is not used: it stops at the first free number, and does not check for use.
"""

import os
import re
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rotary_foundry.doctor.disk_space import SHM
from rotary_foundry.doctor.finding import Finding, doubtful, good
from rotary_foundry.utils.lock_files import remove_lock
from rotary_foundry.utils.wording import size

SUBJECT = "leftovers"


@dataclass
class Leftovers:
    """Streaming's files on this machine."""

    segments: list[Path] = field(default_factory=list)  # stale
    locks: list[Path] = field(default_factory=list)  # stale, or with a number that has no segments
    live: set[str] = field(default_factory=set)  # numbers with a segment in use
    others: int = 0  # files of other users


def find_leftovers(shm: Path = SHM, temporary: Path | None = None) -> Leftovers:
    """Return Streaming's segments and lock files that are not in use, and the numbers that are."""
    from streaming.base.constant import BARRIER_FILELOCK, CACHE_FILELOCK, SHM_TO_CLEAN

    from rotary_foundry.data.checked_shards import SOUND_SHARDS

    found = Leftovers()
    segments = _named(shm, (*SHM_TO_CLEAN, SOUND_SHARDS), found)
    locks = _named(temporary or Path(tempfile.gettempdir()), (BARRIER_FILELOCK, CACHE_FILELOCK), found)
    mapped = _mapped(shm)
    found.live = {_number(path) for path in segments if path in mapped}
    found.segments = [path for path in segments if _number(path) not in found.live]
    found.locks = [path for path in locks if _number(path) not in found.live]
    return found


def check_leftovers(clean: bool, shm: Path = SHM, temporary: Path | None = None) -> Iterator[Finding]:
    """Report the files that killed runs have left; with `clean`, remove them. Do nothing without /dev/shm."""
    if not shm.is_dir():
        return
    found = find_leftovers(shm, temporary)
    alone = {"data sets in use": len(found.live), "files of other users": found.others}
    note = "".join(f"; {what}, left alone: {count}" for what, count in alone.items() if count)
    stale = (
        f"{len(found.segments)} segments ({size(_sizes(found.segments))}) in {shm} and {len(found.locks)} lock files"
    )
    if not found.segments and not found.locks:
        yield good(SUBJECT, f"none of killed runs{note}")
    elif not clean:
        yield doubtful(SUBJECT, f"{stale} of killed runs{note}", "rotary-foundry doctor --clean")
    else:
        freed = _sizes(found.segments)
        for path in found.segments:
            path.unlink(missing_ok=True)
        removed = sum(map(remove_lock, found.locks))
        yield good(SUBJECT, f"removed: {size(freed)} of segments and {removed} lock files of killed runs{note}")


def _named(folder: Path, names: tuple[str, ...], found: Leftovers) -> list[Path]:
    """Return files named by Streaming that belong to this user; for root, those of all users. Count the others."""
    pattern = re.compile(rf"\d{{6,}}_({'|'.join(names)})")
    paths = []
    for path in folder.iterdir():
        if not pattern.fullmatch(path.name):
            continue
        try:
            status = path.lstat()
        except FileNotFoundError:  # a run has just ended
            continue
        if os.geteuid() not in (0, status.st_uid):
            found.others += 1
        elif stat.S_ISREG(status.st_mode):
            paths.append(path)
    return sorted(paths)


def _number(path: Path) -> str:
    return path.name.split("_")[0]


def _sizes(paths: list[Path]) -> int:
    return sum(path.stat().st_size for path in paths if path.exists())


def _mapped(folder: Path) -> set[Path]:
    """Return the files of a folder that any process has mapped, as far as this user may see."""
    found = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            lines = maps.read_text(errors="replace").splitlines()
        except OSError:  # the process has ended, or belongs to another user
            continue
        found |= {folder / line.rpartition("/")[2] for line in lines if f" {folder}/" in line}
    return found
