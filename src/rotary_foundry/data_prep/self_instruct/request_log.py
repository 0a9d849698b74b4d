"""Keep the replies of a generator in a file; each is appended as soon as it arrives.

A line is JSON: the id of a document, the hash of a request, and its reply. Replies cost money or hours, so nothing in
the file is ever removed, except a last line that a killed process left half-written.
"""

import fcntl
import hashlib
import json
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from rotary_foundry.utils.errors import ConfigurationError, DataError


@dataclass(frozen=True)
class Reply:
    """The text that a generator wrote, and the tokens that it counted; None where a server gives no count."""

    text: str
    finish: str | None = None  # "stop", or "length" for a reply that was cut off
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class RequestLog:
    """Finds and keeps replies; one process at a time may use the file, and its threads share the object.

    Args:
        path: the file; it is created if it does not exist.

    Raises:
        ConfigurationError: another process uses the file, or it cannot be written.
        DataError: a line is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._replies: dict[str, Reply] = {}
        try:
            self._file = path.open("ab+")
        except OSError as error:
            raise ConfigurationError(f"{path}: cannot be written: {error.strerror or error}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise ConfigurationError(
                f"{path}: another process is writing it; wait for it to end, or choose another OUT"
            ) from None
        except OSError:
            pass  # a disk without locks
        self._read()

    def _read(self) -> None:
        self._file.seek(0)
        end = 0
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                self._file.truncate(end)
                return
            end += len(line)
            try:
                entry = json.loads(line)
                self._replies[entry["request"]] = Reply(**entry["reply"])
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{self.path}:{number}: expected a request and its reply in JSON; remove the line, and the request "
                    "is made again"
                ) from error

    def find(self, body: dict) -> Reply | None:
        """Return the reply to a request that was finished before."""
        return self._replies.get(_digest(body))

    def add(self, body: dict, document: str, reply: Reply) -> None:
        """Keep a reply; it is on the disk when this returns.

        Raises:
            DataError: it cannot be written.
        """
        line = json.dumps({"document": document, "request": _digest(body), "reply": asdict(reply)}) + "\n"
        with self._lock:
            try:
                self._file.write(line.encode())
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError as error:
                raise DataError(f"{self.path}: cannot be written: {error.strerror or error}") from error
            self._replies[_digest(body)] = reply

    def close(self) -> None:
        """Release the file."""
        self._file.close()


def _digest(body: dict) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
