"""Errors meant for the person at the terminal: one line that says what is wrong, where, and what would be right.

Every command (`composer launch`, `python data_prep`, `rotary-foundry`) prints a FoundryError as that one line and exits
with status 2, or 3 where only a network was missing. Any other exception is a fault of ours and keeps its traceback:
in the rank's log if there is one. A launch ends with status FAILED for a Fault, and for any other exception once
training has begun, so that a scheduler can tell what the same command may not meet again from what it will.
"""

import os
import sys


class FoundryError(Exception):
    """Something a user can put right.

    From a loader's worker process torch makes a new one of the same type, with the whole traceback for a message. What
    was said there is what follows the type's name in it.
    """

    def __init__(self, message: str):
        super().__init__(message.split(f"\n{type(self).__module__}.{type(self).__name__}: ")[-1].rstrip())


class ConfigurationError(FoundryError):
    """A YAML file, an override or a combination of values that cannot be run."""


class DataError(FoundryError):
    """A corpus, a tokenizer or a set of shards that does not fit what was asked of it."""


class NeedsNetwork(FoundryError):
    """What was asked for has to be downloaded, and cannot be from here; the console script exits with status 3."""


class Fault(FoundryError):
    """Nothing that a user has to put right first: a machine, a network or another process failed. The same command may
    go on."""


REFUSED = 2
FAILED = 70  # EX_SOFTWARE of sysexits.h: a crash, or a Fault
STOPPED = 75  # EX_TEMPFAIL of sysexits.h: the run was stopped, and the same command goes on


class StopRequested(Exception):
    """No error: a run that was told to stop has saved a checkpoint, and its processes exit with status STOPPED."""


def print_error(message: str) -> None:
    """Print `error: …` on stderr: in red if that is a terminal and NO_COLOR is not set (no-color.org)."""
    text = f"error: {message}"
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        text = f"\033[31m{text}\033[0m"
    print(text, file=sys.stderr, flush=True)
