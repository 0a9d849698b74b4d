"""What a run that was killed has left behind of Streaming's: segments in /dev/shm, lock files in TMPDIR.

Both are named by a number, under which a data set keeps all that its processes share. A segment takes memory until the
machine restarts, and in a container that starts again in the same pod it stands in the way: process numbers, from which
ours are made, are the same there, and Streaming refuses a cache that a segment says is in use.

Which are stale is asked of the kernel, by a write lease: it is granted only where no process at all has the file open,
also none of another container that shares /dev/shm and is in no process list of ours (`/proc/*/maps` would miss it). It
takes the file's owner, or root; what belongs to others is left alone. A number of which any segment is in use is a live
run's, with all its segments and lock files.

A lock file is removed under its lock. Whoever opened it before then finds that it has no name any more, and opens a new
one: so says `filelock`, which Streaming uses. So no run is hurt even where machines share TMPDIR, and a run's segments
are on another of them.

Streaming's own `clean_stale_shared_memory` was left out: it stops at the first number that is free, and asks nobody.
"""

import fcntl
import os
import re
import signal
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rotary_foundry.doctor.disk_space import SHM
from rotary_foundry.doctor.finding import Finding, doubtful, good
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
    for path in segments:
        with _unused(path) as unused:
            if not unused:
                found.live.add(_number(path))
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
        freed = sum(_remove_segment(path) for path in found.segments)
        removed = sum(_remove_lock(path) for path in found.locks)
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


@contextmanager
def _unused(path: Path) -> Iterator[bool]:
    """Whether no process has a file open or mapped, and keep it so for the while. False if that cannot be told."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        yield False
        return
    try:
        fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)  # who wants the file meanwhile waits; SIGIO would end us
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        unused = True
    except OSError:
        unused = False
    try:
        yield unused
    finally:
        os.close(file)


def _remove_segment(path: Path) -> int:
    """Remove a segment that is still unused; the bytes that it took."""
    with _unused(path) as unused:
        if not unused:
            return 0
        freed = path.stat().st_size
        path.unlink()
        return freed


def _remove_lock(path: Path) -> bool:
    """Remove a lock file, unless it is held."""
    try:
        file = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        return True
    except OSError:
        return False
    finally:
        os.close(file)
