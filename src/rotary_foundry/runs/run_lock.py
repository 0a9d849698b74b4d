"""Lock a folder, so that one process at a time works in it: a run, `data_prep`, `finetune` or `evaluate`.

The lock is a file `lock.json` in the folder, or an object of that name in a run's store. It says which process holds
it, on which host, and since when. The holder renews it every BEAT seconds and removes it when it ends.

- A second process is refused while the holder is alive. If both have the same kernel and the same process numbers,
  /proc tells: the number and the start time of the process must match those in the lock. So a lock that a killed
  process left is taken over at once.
- A process on another host, in another container or before a reboot cannot be checked. Then the lock is watched. If it
  is renewed, the second process is refused. If it is not renewed for GONE_AFTER seconds, it is taken over. The clocks
  of two hosts are never compared. A lock that cannot be read is watched too, because its holder is unknown.
- A holder that finds another's lock in place of its own has not renewed it for too long. It stops before it writes.

A new lock file is created exclusively (O_EXCL), so exactly one process gets it. A takeover replaces the file, and
no shared disk can do that conditionally. So processes of one host take turns by flock on the folder, and a process that
took over checks after SETTLE seconds that the lock is still its own. In a store, writes are conditional (If-None-Match,
If-Match). Some stores do not support that, so the same check follows every write there.

`filelock` is not used. Its lease does the same for files, but it does not tell since when a lock is held, and a store
would have needed a second protocol.
"""

import fcntl
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from rotary_foundry.utils.errors import ConfigurationError, FoundryError

if TYPE_CHECKING:
    from rotary_foundry.utils.object_store import Bucket

LOCK = "lock.json"
BEAT = 10.0  # seconds between two renewals
# Seconds without a renewal after which a holder counts as gone. It must be more than the 60 s that an NFS client may
# cache a file's attributes (acregmax). Eight renewals in a row may fail before a live run loses its lock.
GONE_AFTER = 90.0
LOOKS = 90  # number of times that the lock is read within GONE_AFTER
SETTLE = 1.0  # seconds to wait for a process that takes over at the same moment
END = 10.0  # most seconds that an ending process waits for its lock to be removed

log = logging.getLogger(__name__)
_held: "list[RunLock]" = []


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock."""

    host: str
    process: int
    since: str  # UTC
    token: str  # unique to this lock
    boot: str | None  # the kernel's boot id; None: unknown
    numbering: str | None  # the namespace of process numbers; None: unknown
    start: int | None  # when the process started, in clock ticks after boot; None: unknown

    @classmethod
    def this(cls) -> "Holder":
        """Return the calling process as a holder."""
        since = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
        pid = os.getpid()
        return cls(socket.gethostname(), pid, since, uuid4().hex, _boot(), _numbering(), _start(pid))

    @classmethod
    def read(cls, content: bytes) -> "Holder | None":
        """Return the holder that a lock names; None if the lock cannot be read."""
        try:
            holder = cls(**json.loads(content))
        except (ValueError, TypeError):
            return None
        return holder if type(holder.process) is int and holder.process > 0 else None

    def lives(self) -> bool | None:
        """Return whether the process is alive; None if that cannot be checked from here."""
        if None in (self.boot, self.numbering) or (self.boot, self.numbering) != (_boot(), _numbering()):
            return None
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # the process is another user's
        start = _start(self.process)
        return None if None in (start, self.start) else start == self.start

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, since {self.since}"


def _boot() -> str | None:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return None


def _numbering() -> str | None:
    with suppress(OSError):
        if os.readlink("/proc/self") == str(os.getpid()):  # else /proc shows another namespace's processes
            return os.readlink("/proc/self/ns/pid")
    return None


def _start(process: int) -> int | None:
    """Return a process's start in clock ticks after boot; 0 for a zombie; None if /proc does not show it."""
    try:
        state, *numbers = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return 0 if state in (b"Z", b"X") else int(numbers[18])  # fields 3 and 22 of proc(5)


@dataclass(frozen=True)
class Found:
    """The state of a lock: its content, and a stamp that changes at every renewal."""

    content: bytes
    stamp: tuple
    renewed: float  # seconds since the epoch, by the clock of the disk or the store


class LockFile:
    """A lock in a folder. A missing folder is made; it is removed with the lock if it is empty then.

    Args:
        folder: the folder.
        key: the key of the configuration that sets the folder.
        other: the key to set for another folder, if it is not `key`.

    Raises:
        ConfigurationError: in every method but `renew` and `remove`: a file cannot be used; names it and the key.
    """

    exclusive = True  # exactly one of several processes that write a new lock gets it
    local = True  # a look sends no request to a store

    def __init__(self, folder: Path, key: str, other: str | None = None):
        self.folder, self.key, self.other = folder, key, other or key
        self.path, self.name = folder / LOCK, str(folder)
        self._made: list[Path] = []

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Keep other processes of this host from reading and writing the lock during this block."""
        with self._reported(self.folder):
            self._made = self._made or [path for path in (self.folder, *self.folder.parents) if not path.exists()]
            self.folder.mkdir(parents=True, exist_ok=True)
            folder = os.open(self.folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # a disk without flock
                fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def look(self) -> Found | None:
        with self._reported(self.path):
            try:
                with open(self.path, "rb") as file:  # opening the file makes an NFS client ask the server
                    status = os.fstat(file.fileno())
                    return Found(file.read(), (status.st_mtime_ns,), status.st_mtime)
            except FileNotFoundError:
                return None

    def write(self, content: bytes, over: Found | None) -> bool:
        """Write the lock, over another or where there is none; return False if another process was faster."""
        arriving = self.path if over is None else self.folder / f".{LOCK}.{uuid4().hex}"
        with self._reported(self.path):
            try:
                file = os.open(arriving, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            except FileExistsError:
                return False
            try:
                try:
                    os.write(file, content)
                finally:
                    os.close(file)
                if over is not None:
                    arriving.replace(self.path)
            except OSError:
                arriving.unlink(missing_ok=True)
                raise
        return True

    def renew(self, found: Found) -> bool:
        """Change the stamp; return False if the lock does not exist any more."""
        try:
            os.utime(self.path)
        except FileNotFoundError:
            return False
        return True

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        with suppress(OSError):  # the folder is not empty
            for folder in self._made:
                folder.rmdir()

    @contextmanager
    def _reported(self, path: Path) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # a path with a NUL is a ValueError
            why = getattr(error, "strerror", None) or error
            raise ConfigurationError(
                f"'{self.key}': {path}: cannot be read or written: {why}; this folder's lock is "
                f"kept there: fix this, or choose another folder with {self.key}=…"
            ) from error


class LockObject:
    """A lock in a run's store, like a LockFile in a folder. Every method raises a FoundryError if the store fails."""

    key, other, exclusive, local = "save_folder", "run_name", False, False

    def __init__(self, bucket: "Bucket"):
        self.bucket, self.name = bucket, bucket.url

    @contextmanager
    def turn(self) -> Iterator[None]:
        yield

    def look(self) -> Found | None:
        with self.bucket.reported():
            found = self.bucket.look(LOCK)
        return None if found is None else Found(*found, found[1][1].timestamp())

    def write(self, content: bytes, over: Found | None) -> bool:
        with self.bucket.reported():
            return self.bucket.write_over(LOCK, content, None if over is None else over.stamp[0])

    def renew(self, found: Found) -> bool:
        return self.write(found.content, found)

    def remove(self) -> None:
        with self.bucket.reported():
            self.bucket.remove(LOCK)


class RunLock:
    """Hold a lock while the context is entered. An object can be entered once.

    Args:
        place: the lock's file or object.
        beat: seconds between two renewals.
        gone_after: seconds without a renewal, after which a holder that cannot be checked counts as gone.

    Raises:
        ConfigurationError: on entering: another process holds the lock, or it cannot be written.
        FoundryError: the store cannot be used.
    """

    def __init__(self, place: LockFile | LockObject, beat: float = BEAT, gone_after: float = GONE_AFTER):
        self.place, self.beat, self.gone_after = place, beat, gone_after
        self._record = b""
        self._over = threading.Event()
        self._lost: str | None = None
        self._renewed = 0.0

    def __enter__(self) -> "RunLock":
        self._record = json.dumps(asdict(Holder.this()), indent=2).encode() + b"\n"
        self._take()
        self._renewed = _clock()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()
        _held.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def check(self) -> None:
        """Check that this process still holds the lock. It reads the disk only after `gone_after` without a renewal.

        Raises:
            FoundryError: another process has taken the lock over, or the lock was removed.
        """
        if self.place.local and _clock() - self._renewed > self.gone_after:  # this process was suspended
            with suppress(FoundryError, OSError):  # a disk that does not answer
                self._renew()
        if self._lost is not None:
            raise FoundryError(self._lost)

    def release(self) -> None:
        """Remove the lock if this process still holds it. Wait at most END seconds for a store that does not answer."""
        self._over.set()
        self._thread.join(END)
        if self in _held:
            _held.remove(self)

    def _take(self) -> None:
        watched, looks = None, 0
        while True:
            with self.place.turn():
                found = self.place.look()
                holder = None if found is None else Holder.read(found.content)
                lives = None if holder is None else holder.lives()
                if lives or _renewed(watched, found):
                    raise self._refusal(holder)
                gone = found is None or lives is False or (found == watched and looks >= LOOKS)
                written = gone and self.place.write(self._record, found)
            if written and found is None and self.place.exclusive:
                return
            if written:
                time.sleep(SETTLE)
                found = self.place.look()
                if found is not None and found.content == self._record:
                    return
            if not gone and found != watched:
                watched, looks = found, 0
                self._say_that_it_waits(holder)
            time.sleep(self.gone_after / LOOKS)
            looks += 1  # looks are counted, not seconds: one look at a disk that hangs may take minutes

    def _refusal(self, holder: Holder | None) -> ConfigurationError:
        lock = f"{self.place.name}/{LOCK}"
        whose = f"{holder}," if holder else f"a process that {lock} does not name"
        text = (
            f"'{self.place.key}': {self.place.name}: {whose} is at work there; wait for it to end, stop it, or choose "
            f"another folder with {self.place.other}=…"
        )
        if holder is None or not holder.lives():
            text += (
                f" ({lock} was renewed just now; if that machine fails, the same command continues after "
                f"{self.gone_after:g} s without a renewal)"
            )
        return ConfigurationError(text)

    def _say_that_it_waits(self, holder: Holder | None) -> None:
        whose = f"{holder}, holds it and cannot be checked from here" if holder else "cannot be read as a lock"
        print(
            f"{self.place.name}/{LOCK}: {whose}; this process takes it over if it is not renewed for "
            f"{self.gone_after:g} s",
            flush=True,
        )

    def _keep(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # the main thread may hold it back
        while self._lost is None and not self._over.wait(self.beat):
            try:
                self._renew()
            except (FoundryError, OSError) as error:  # a store or a disk does not answer; the next renewal may succeed
                log.warning("the lock could not be renewed: %s", error)
        try:
            found = self.place.look()
            if found is not None and found.content == self._record:
                self.place.remove()
        except (FoundryError, OSError) as error:
            log.warning("the lock is left behind: %s", error)

    def _renew(self) -> None:
        since = _clock()
        found = self.place.look()
        if found is not None and found.content == self._record and self.place.renew(found):
            self._renewed = since
            return
        found = self.place.look()
        if found is not None and found.content == self._record:
            return  # renewed by the other thread meanwhile
        lock, other = f"{self.place.name}/{LOCK}", None if found is None else Holder.read(found.content)
        self._lost = (
            f"{lock}: was removed while this process held it, so another may be at work there; this one stops"
            if found is None
            else f"{lock}: was taken over by {other or 'a process that it does not name'}, as this process did not "
            f"renew it for {self.gone_after:g} s; this one stops, and leaves the folder to the other"
        )


def _renewed(before: Found | None, now: Found | None) -> bool:
    """Return whether the same holder has renewed its lock."""
    return None not in (before, now) and before.content == now.content and before.stamp != now.stamp


def release_held() -> None:
    """Release all locks of this process, which is about to end without leaving their contexts."""
    for lock in list(_held):
        lock.release()


def _clock() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)  # also counts while the machine is suspended
