"""`launch/slurm/train.sbatch` on a real Slurm cluster."""

import sys

import pytest

from ..training.conftest import REPOSITORY, own_temporary_folder, tiny, undisturbed  # noqa: F401
from .cluster import one_machine_cluster, why_not

SCRIPT = REPOSITORY / "launch/slurm/train.sbatch"
ENVIRONMENT = {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if reason := why_not():
        pytest.skip(reason)
    with one_machine_cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def train(cluster, *arguments):
    return cluster.submit(f"--chdir={REPOSITORY}", "--gpus-per-node=1", str(SCRIPT), *arguments, **ENVIRONMENT)


def test_a_recipe_that_cannot_be_run_is_not_requeued(cluster):
    job = train(cluster, "yamls/main/nano.yaml", "precision=fp7")
    ended = cluster.wait(job, "FAILED", "COMPLETED")
    print(cluster.log(job), ended)
    assert ended["ExitCode"] == "2:0"
    assert ended["Restarts"] == "0"
