"""The log files of all ranks, in the run's folder."""

import faulthandler
import logging
import sys
from dataclasses import asdict
from typing import TextIO

from rotary_foundry.recipe import Recipe
from rotary_foundry.runs.run_folder import RunFolder
from rotary_foundry.utils.errors import FoundryError
from rotary_foundry.utils.processes import rank
from rotary_foundry.utils.redaction import redacted

log = logging.getLogger(__name__)
_file: TextIO | None = None
_recipe: dict | None = None  # its secrets are removed from the log


def start_logs(recipe: Recipe) -> None:
    """Write this rank's log records, warnings and failures to `<run>/logs/rank<N>.log`, and only there.

    A resumed run appends to the existing file.
    """
    global _file, _recipe
    _recipe = asdict(recipe)
    folder = RunFolder.of(recipe).logs
    folder.mkdir(parents=True, exist_ok=True)
    handler = _LogFile(folder / f"rank{rank()}.log", encoding="utf-8")
    _file = handler.stream
    handler.setFormatter(_WithoutSecrets("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    logging.captureWarnings(True)
    faulthandler.enable(_file)


class _LogFile(logging.FileHandler):
    """Ignores errors in writing the log, as on a full disk; a write that matters raises its own error."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


class _WithoutSecrets(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record), _recipe)


def log_failure(error: Exception) -> str:
    """Log the traceback of the exception that ends this rank, and return the message for the terminal.

    For a FoundryError and an OSError (which names the file) it is their own message. For any other exception it has one
    line of the exception's message, the rank and the path of the traceback.
    """
    log.critical("this rank ends", exc_info=error)
    if isinstance(error, (FoundryError, OSError)):
        return redacted(str(error), _recipe)
    # the message of an exception from a loader's worker process is its whole traceback
    said = [line for line in str(error).splitlines() if line.strip()] or [""]
    line = said[-1].strip() if "Traceback" in str(error) else f"{type(error).__name__}: {said[0]}"
    return f"rank {rank()}: {redacted(line, _recipe)} (traceback: {_file.name if _file else 'not kept'})"


def log_where_it_stands(why: str) -> None:
    """Log why this rank ends now, and the stacks of all its threads."""
    log.critical("this rank ends: %s", why)
    if _file is not None:
        faulthandler.dump_traceback(_file)
