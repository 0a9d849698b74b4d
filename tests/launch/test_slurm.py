"""`launch/slurm/train.sbatch` on a real Slurm cluster."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rotary_foundry.runs.environment import commit
from rotary_foundry.runs.run_folder import RunFolder
from rotary_foundry.utils.errors import STOPPED

from ..training.conftest import REPOSITORY
from ..training.runs import assert_same_run, records
from .cluster import Cluster, one_machine_cluster, why_not

SCRIPT = REPOSITORY / "launch/slurm/train.sbatch"
AS_ON_ONE_NODE = "fsdp_config.data_parallel_replicate_degree=1"  # two copies add gradients up in another order
LONGER = "stages.pretrain.duration=98_304tok"  # some 140 updates: on an idle machine, too, more than interruptions take
SLOW = "callbacks={tests.training.runs.Slow: {seconds: 0.3}}"
MORE = 8  # updates, from one interruption to the next


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if reason := why_not():
        pytest.skip(reason)
    with one_machine_cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def undisturbed(tiny) -> Path:
    """The folder of a run that nothing disturbed."""
    run = tiny.launch("run_name=undisturbed", LONGER)
    assert run.returncode == 0, run.stderr[-4000:]
    return tiny.folder / "runs/undisturbed"


def train(cluster: Cluster, options: list[str], *arguments: str) -> str:
    """Submit the real script for nodes of one GPU each; the job's number."""
    options = [f"--chdir={REPOSITORY}", "--gpus-per-node=1", *options]
    return cluster.submit(
        *options, str(SCRIPT), *arguments, PYTHON=sys.executable, OMP_NUM_THREADS="1", PYTHONPATH=str(REPOSITORY)
    )


def updates(run: Path) -> int:
    return len(records(run)) if RunFolder(run).metrics.exists() else 0


def wait_for_more_updates(run: Path, job: str, cluster: Cluster) -> None:
    before, last = updates(run), time.monotonic() + 300
    while updates(run) < before + MORE:
        assert time.monotonic() < last, cluster.log(job)
        time.sleep(0.1)


def wait_for_restart(cluster: Cluster, job: str, restarts: int) -> None:
    """Wait until Slurm has started a job anew for the so many-th time, with an hour from now."""
    assert cluster.wait(job, "PENDING", "COMPLETED", "FAILED")["Restarts"] == str(restarts), cluster.log(job)
    cluster.ask("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    cluster.wait(job, "RUNNING", "FAILED")


def assert_ends_as(undisturbed: Path, run: Path, job: str, cluster: Cluster, restarts: int) -> None:
    """A job that was restarted so often, each time by a word to its run, comes to the end of a run that was not."""
    ended = cluster.wait(job, "COMPLETED", "FAILED", "PENDING")
    log = cluster.log(job)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", str(restarts)), log
    assert log.count("which is saved; the same command goes on from there") == restarts
    assert log.count("going on from ba") == restarts + 1  # and after the recipe's own rollback
    assert_same_run(run, undisturbed)


# Stand for Slurm's commands; `srun` shows what a step on the second node would be given.
STAND_INS = {
    "scontrol": "echo node1; echo node2",
    "sinfo": "echo 10.0.0.1",
    "squeue": "echo RUNNING",
    "srun": "printf '%s\\n' \"$@\"; env | grep -E '^(PYTHONPATH|ROTARY_FOUNDRY_COMMIT)='",
}


@pytest.mark.parametrize("image", ["registry#rotary-foundry:1", None])
def test_in_a_container_the_code_is_the_mounted_folders_and_not_the_images_own(tmp_path, image):
    for name, does in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2"}
    others = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    given = others | job | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", str(SCRIPT), "yamls/main/nano.yaml"]
    ran = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=given | ({"CONTAINER_IMAGE": image} if image else {}),
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = ran.stdout.splitlines()
    assert "launch/stoppable.py" in ran.stdout
    assert (f"--container-image={image}" in said) == (image is not None)
    assert (f"--container-mounts={REPOSITORY}:{REPOSITORY}" in said) == (image is not None)
    assert ("--container-env=PYTHONPATH,ROTARY_FOUNDRY_COMMIT" in said) == (image is not None)
    assert (f"PYTHONPATH={REPOSITORY}/src" in said) == (image is not None)
    assert (f"ROTARY_FOUNDRY_COMMIT={commit() or ''}" in said) == (image is not None)


@pytest.mark.long
def test_a_recipe_that_cannot_be_run_is_not_requeued(cluster):
    job = train(cluster, ["--nodes=1"], "yamls/main/nano.yaml", "precision=fp7")
    cluster.wait(job, "RUNNING")
    ended = cluster.wait(job, "FAILED", "COMPLETED", "PENDING")
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "2:0", "0")
    assert "error: yamls/main/nano.yaml: 'precision': 'fp7' is not one of" in cluster.log(job)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_run_that_is_preempted_is_requeued_and_ends_in_the_undisturbed_runs_weights(cluster, tiny, undisturbed):
    run = tiny.folder / "runs/preempted"
    job = train(cluster, ["--nodes=2"], str(tiny.recipe), "run_name=preempted", LONGER, AS_ON_ONE_NODE)
    cluster.wait(job, "RUNNING")
    wait_for_more_updates(run, job, cluster)
    urgent = cluster.submit("--partition=urgent", "--nodes=2", "--exclusive", "--wrap=true")
    cluster.wait(urgent, "COMPLETED")
    wait_for_restart(cluster, job, restarts=1)
    assert "PREEMPTION" not in cluster.log(job)  # it ended in the grace period
    assert_ends_as(undisturbed, run, job, cluster, restarts=1)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_run_that_is_warned_and_then_requeued_ends_in_the_undisturbed_runs_weights(cluster, tiny, undisturbed):
    run = tiny.folder / "runs/warned"

    # Less than the five minutes at which the script asks to be warned: the signal comes at Slurm's next look, which is
    # within half a minute. The updates take longer.
    job = train(cluster, ["--time=3"], str(tiny.recipe), "run_name=warned", LONGER, AS_ON_ONE_NODE, SLOW)
    cluster.wait(job, "RUNNING")
    wait_for_restart(cluster, job, restarts=1)
    assert "which is saved; the same command goes on from there" in cluster.log(job)

    wait_for_more_updates(run, job, cluster)
    cluster.ask("scontrol", "requeue", job)
    wait_for_restart(cluster, job, restarts=2)
    assert re.search(r"STEP \S+ ON node1 CANCELLED AT \S+ DUE TO JOB REQUEUE", cluster.log(job))  # Slurm ended it
    assert_ends_as(undisturbed, run, job, cluster, restarts=2)


@pytest.mark.long
def test_a_run_that_is_cancelled_saves_its_update_and_stays_cancelled(cluster, tiny):
    run = tiny.folder / "runs/cancelled"
    job = train(cluster, ["--nodes=1"], str(tiny.recipe), "run_name=cancelled", LONGER)
    cluster.wait(job, "RUNNING")
    wait_for_more_updates(run, job, cluster)
    cluster.ask("scancel", job)
    cluster.wait_until_idle()
    assert cluster.job(job)["JobState"] == "CANCELLED"
    assert RunFolder(run).newest_checkpoint().batch == len(records(run))
    assert cluster.job(job)["ExitCode"] == f"{STOPPED}:0"


@pytest.mark.long
def test_the_doctor_looks_at_the_nodes_of_a_job_and_tries_their_collectives(cluster, tiny):
    job = train(cluster, ["--nodes=2"], "doctor", str(tiny.recipe))
    cluster.wait(job, "RUNNING")
    cluster.wait(job, "COMPLETED", "FAILED")
    assert re.search(r"✓ collectives +gloo over 2 ranks: sums are right", cluster.log(job)), cluster.log(job)


def prepare(cluster: Cluster, tiny, out: Path, memory_gb: int) -> subprocess.CompletedProcess:
    """Prepare the tiny corpus by jobs on the cluster."""
    slurm = f"{{time: '0:20:00', partition: spot, cpus_per_task: 1, mem_per_cpu_gb: {memory_gb}, workers: 2}}"
    command = [sys.executable, "data_prep", str(tiny.folder / "corpus.yaml"), f"out={out}"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # as an activated environment has it
    return subprocess.run(
        [*command, f"executor={{slurm: {slurm}}}"],
        cwd=REPOSITORY,
        env=cluster.environment | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=200,
    )


def shards(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.mds.zstd")}


@pytest.mark.long
def test_shards_prepared_by_jobs_are_byte_for_byte_those_prepared_here(cluster, tiny):
    out = tiny.folder / "on-slurm"
    submitted = prepare(cluster, tiny, out, memory_gb=1)
    assert "submitted; give the same command again" in submitted.stdout, submitted.stderr
    while cluster.ask("squeue", "--noheader"):
        time.sleep(1)
    assert "is complete" in prepare(cluster, tiny, out, memory_gb=1).stdout
    assert shards(out) == shards(tiny.folder / "data") != {}


@pytest.mark.long
def test_preparation_that_slurm_refuses_ends_with_one_line(cluster, tiny):
    refused = prepare(cluster, tiny, tiny.folder / "refused", memory_gb=1000)
    assert refused.returncode == 2
    assert "sbatch: error: " in refused.stderr
    assert refused.stderr.splitlines()[-1].startswith("error: executor: slurm: sbatch refused these jobs")
