"""Errors for the user at the terminal: one line that says what is wrong, where, and what to do.

Every command (`composer launch`, `python data_prep`, `rotary-foundry`) prints a FoundryError as one line and exits with
status 2, or with status 3 if only a network was missing. It does the same for an OSError, which names its file. Any
other exception is a bug and keeps its traceback, in the rank's log if there is one. A launch ends with status FAILED
for a Fault, and for any other exception after training has begun. So a scheduler can distinguish failures that the same
command may avoid next time from those that would repeat.
"""

import io
import os
import sys


class FoundryError(Exception):
    """A problem that a user can fix.

    If it is raised in a loader's worker process, torch makes a new exception of the same type whose message is the
    whole traceback. The original message follows the type's name in it.
    """

    def __init__(self, message: str):
        super().__init__(message.split(f"\n{type(self).__module__}.{type(self).__name__}: ")[-1].rstrip())


class ConfigurationError(FoundryError):
    """A YAML file, an override or a combination of values is invalid."""


class DataError(FoundryError):
    """A corpus, a tokenizer, a model or a set of shards is missing, damaged or does not fit."""


class NeedsNetwork(FoundryError):
    """A download is needed and there is no network; the console script exits with status 3."""


class Fault(FoundryError):
    """A machine, a network or another process failed. The user need not fix anything; the same command may succeed."""


def check_utf_8(*paths: str | os.PathLike[str] | None) -> None:
    """Check that paths are UTF-8: libraries for models and tokenizers open no others, and tables hold no other names.

    Raises:
        DataError: a path is not UTF-8.
    """
    for path in paths:
        try:
            os.fspath(path or "").encode()
        except UnicodeEncodeError:
            shown = repr(os.fsencode(path))
            raise DataError(f"{shown}: the name of this file or folder is not UTF-8; rename it") from None


REFUSED = 2
FAILED = 70  # EX_SOFTWARE of sysexits.h: a crash, or a Fault
STOPPED = 75  # EX_TEMPFAIL of sysexits.h: the run was stopped, and the same command resumes it


class StopRequested(Exception):
    """Not an error: a run that got a stop signal has saved a checkpoint, and its processes exit with status STOPPED."""


def escape_unprintable() -> None:
    """Make stdout and stderr print an escape, and not raise an error, for a character that their encoding lacks.

    This happens on a terminal or log that is not UTF-8 (Textualize/rich#826), and with file names that are not.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not that of a notebook or another program
            stream.reconfigure(errors="backslashreplace")


def print_error(message: str) -> None:
    """Print `error: …` on stderr: in red if that is a terminal and NO_COLOR is not set (no-color.org).

    It is one line, even if a message from another library in it has several.
    """
    text = f"error: {' '.join(message.splitlines())}"
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        text = f"\033[31m{text}\033[0m"
    print(text, file=sys.stderr, flush=True)
