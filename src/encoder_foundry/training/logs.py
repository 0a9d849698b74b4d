"""Every rank's log, in the run's folder."""

import faulthandler
import logging
import os
import sys
from pathlib import Path
from types import TracebackType

from encoder_foundry.recipe import Recipe
from encoder_foundry.run_folder import RunFolder


def start_logs(recipe: Recipe) -> None:
    """Write this rank's log records, warnings and uncaught exceptions to `<run>/logs/rank<N>.log`, and only there.

    A resumed run appends to what is there.
    """
    folder = RunFolder(Path(recipe.runs_folder) / recipe.run_name).logs
    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / f"rank{os.environ.get('RANK', '0')}.log", "a", encoding="utf-8")  # noqa: SIM115 (held open)
    handler = logging.StreamHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    logging.captureWarnings(True)
    faulthandler.enable(file)

    def log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        logging.getLogger("encoder_foundry").critical("uncaught", exc_info=(kind, error, trace))
        sys.__excepthook__(kind, error, trace)

    sys.excepthook = log_uncaught
