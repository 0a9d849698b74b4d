"""A small corpus, a recipe over it, and machines of a test's own making."""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from rotary_foundry.doctor.finding import BAD, DOUBTFUL, GOOD, Finding
from rotary_foundry.recipe import Recipe
from rotary_foundry.runs.recipes import load_recipe

from ..data.conftest import row_folder
from ..data_prep.inspection.tree import write_tree
from ..namespaces import why_not

__all__ = ["row_folder"]  # a fixture, here too

REPOSITORY = Path(__file__).parents[2]
RECIPE = """
extends: [{nano}]
run_name: small
runs_folder: {folder}/runs
precision: fp32
model: {{vocab_size: 448, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 3, num_attention_heads: 2}}
data: {{local: {folder}/data, num_workers: 1}}
save_interval: 2ba
stages:
  pretrain: {{duration: 6144tok, row_length: 64, batch_size_ramp: null, t_warmup: 1000tok}}
  extend: {{duration: 4096tok, row_length: 256}}
  decay: {{duration: 4096tok, row_length: 256}}
"""


@pytest.fixture(scope="session")
def recipe_file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    write_tree(folder / "data", ("code", "docs", "web"))
    (folder / "small.yaml").write_text(RECIPE.format(folder=folder, nano=REPOSITORY / "yamls/main/nano.yaml"))
    return folder / "small.yaml"


@pytest.fixture(scope="session")
def recipe(recipe_file) -> Recipe:
    return load_recipe(recipe_file)


def marks(findings: Iterable[Finding]) -> dict[str, int]:
    """How many there are of each mark."""
    found = [finding.mark for finding in findings]
    return {mark: found.count(mark) for mark in (GOOD, DOUBTFUL, BAD) if mark in found}


def only(findings: Iterable[Finding]) -> Finding:
    (finding,) = findings
    return finding


# As root in namespaces of their own, which any user may make where the system allows it.
UNSHARE = ["--map-root-user", "--mount"]


def on_own_machine(mounts: dict[str, str], command: list[str], **environment: str) -> subprocess.CompletedProcess:
    """Run a command where these folders are memory of these sizes, which nothing else sees."""
    if reason := why_not(UNSHARE, "true"):
        pytest.skip(reason)
    steps = [f"mount -t tmpfs -o size={size} none {shlex.quote(place)}" for place, size in mounts.items()]
    return subprocess.run(
        ["unshare", *UNSHARE, "sh", "-c", " && ".join([*steps, f"exec {shlex.join(command)}"])],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        timeout=240,
    )


def doctor(*arguments: object) -> list[str]:
    """The command line of `rotary-foundry doctor …`."""
    return [str(Path(sys.executable).parent / "rotary-foundry"), "doctor", *map(str, arguments)]
