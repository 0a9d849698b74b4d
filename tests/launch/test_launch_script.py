"""`launch/__main__.py` in one process, without a run in it: what comes while Python takes a rank down."""

import runpy
import subprocess
import sys

import pytest

from rotary_foundry import compile_plan, load_recipe

from ..training.conftest import REPOSITORY

# The launcher's signal for the end of another rank.
LATE_SIGNAL = """
import atexit, os, signal
atexit.register(os.kill, os.getpid(), signal.SIGTERM)
"""
# The end of a loader's worker, which the rank kills: torch's handler of SIGCHLD raises an error for it.
KILLED_WORKER = """
import atexit, time
from torch.utils.data import DataLoader
rows = iter(DataLoader(range(100), num_workers=1))
next(rows)
atexit.register(lambda: [time.sleep(0.01) for _ in range(50)])
"""
SCRIPT = """
import runpy, sys
sys.argv = ["launch", "no_such.yaml"]
runpy.run_path("launch", run_name="__main__")
"""


@pytest.mark.parametrize("before", [LATE_SIGNAL, KILLED_WORKER], ids=["late signal", "killed worker"])
def test_nothing_takes_the_first_rank_its_word_or_its_status_while_python_takes_it_down(before):
    ended = subprocess.run([sys.executable, "-c", before + SCRIPT], cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr == "error: no_such.yaml: no such file\n"


@pytest.mark.parametrize(
    ("recipe", "processes"),
    [("base", ranks) for ranks in (8, 16, 24, 32, 64, 128, 256)]
    + [("large", ranks) for ranks in (8, 16, 32, 64, 128, 256)],
)
def test_the_published_recipes_run_on_as_many_processes_as_clusters_have(recipe, processes, monkeypatch):
    """Two nodes of 8 are what launch/kubernetes and launch/skypilot ask for, four the README's sbatch."""
    script = runpy.run_path(str(REPOSITORY / "launch/__main__.py"))
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    path = REPOSITORY / f"yamls/main/{recipe}.yaml"
    loaded = load_recipe(path, ["init_from=null"])
    script["check_world_size"](loaded, compile_plan(loaded), str(path))
