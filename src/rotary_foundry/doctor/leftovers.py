"""What a run that was killed has left behind of Streaming's: segments in /dev/shm, lock files in TMPDIR.

Both are named by a number, under which a data set keeps all that its processes share. A segment takes memory until the
machine restarts, and in a container that starts again in the same pod it stands in the way: process numbers, from which
ours are made, are the same there, and Streaming refuses a cache that a segment says is in use.

A number is in use if any process has one of its segments mapped, by /proc/*/maps, and then all its segments and lock
files are. Processes of another container are not seen there, so where containers share /dev/shm (`--ipc=host`), clean
on the host. What belongs to other users is left alone.

A lock file is removed unless it is held (utils/lock_files.py). So no run is hurt even where machines share TMPDIR, and
a run's segments are on another of them.

A process that ends well removes both (compat/streaming.py), so what is found was left by one that was killed.

Streaming's own `clean_stale_shared_memory` was left out: it stops at the first number that is free, and asks nobody.
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
    locks: list[Path] = field(default_factory=list)  # stale, or of a number without segments
    live: set[str] = field(default_factory=set)  # numbers of which a segment is in use
    others: int = 0  # files of other users


def find_leftovers(shm: Path = SHM, temporary: Path | None = None) -> Leftovers:
    """Streaming's segments and lock files, those in use apart from those that are not."""
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
    """Tell of what killed runs have left behind, and remove it if asked to. Nothing where there is no /dev/shm."""
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
    """Our own files that Streaming has named so; root's are all."""
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
    """The files of a folder that a process has mapped, as far as this user may know it."""
    found = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            lines = maps.read_text(errors="replace").splitlines()
        except OSError:  # it has ended, or is another user's
            continue
        found |= {folder / line.rpartition("/")[2] for line in lines if f" {folder}/" in line}
    return found
