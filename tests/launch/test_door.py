"""`launch/__main__.py` in one process, without a run in it."""

import subprocess
import sys

from ..training.conftest import REPOSITORY

# The launcher's signal for the end of another rank, which comes while Python takes this one down.
LATE_SIGNAL = """
import atexit, os, runpy, signal, sys
atexit.register(os.kill, os.getpid(), signal.SIGTERM)
sys.argv = ["launch", "no_such.yaml"]
runpy.run_path("launch", run_name="__main__")
"""


def test_the_launchers_signal_takes_the_first_rank_neither_its_word_nor_its_status():
    ended = subprocess.run([sys.executable, "-c", LATE_SIGNAL], cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr == "error: no_such.yaml: no such file\n"
