"""Remove lock files that nothing holds.

`filelock`, which Streaming uses, leaves the file of a lock in place. Removing it harms no other process that has opened
it: according to `filelock`, that process notices, once it has the lock, that the file has no name any more, and opens a
new one.
"""

import fcntl
import os
from pathlib import Path


def remove_lock(path: str | Path) -> bool:
    """Remove a lock file, unless it is held or gone; return whether it was removed."""
    try:
        file = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
        return True
    except OSError:
        return False
    finally:
        os.close(file)
