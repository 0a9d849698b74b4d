"""The JobSet: against the published models of JobSet's API, as the Kubeflow project ships them, and Kubernetes' schema.

No cluster has run it. That JobSet's rules lead where they should is by its documentation; what the container's command
does with a signal and with an exit status is run here.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from rotary_foundry.runs.recipes import load_recipe
from rotary_foundry.utils.errors import STOPPED

REPOSITORY = Path(__file__).parents[2]
RANK = """
import os, signal, sys, time
def stop(*_):
    open(os.environ["RANK"], "w").write("told to stop")
    sys.exit({stopped})
signal.signal(signal.SIGUSR1, stop)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
open("ready" + os.environ["RANK"], "w").close()
time.sleep({seconds})
sys.exit({status})
"""


@pytest.fixture(scope="module")
def jobset() -> dict:
    return yaml.safe_load((REPOSITORY / "launch/kubernetes/jobset.yaml").read_text())


@pytest.fixture(scope="module")
def job(jobset) -> dict:
    (replicated,) = jobset["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


@pytest.fixture(scope="module")
def container(job) -> dict:
    (container,) = job["template"]["spec"]["containers"]
    return container


def test_jobsets_published_models_know_every_key_and_value(jobset):
    from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet  # takes two seconds

    assert JobsetV1alpha2JobSet.from_dict(jobset).to_dict() == jobset
    misspelt = jobset | {"spec": jobset["spec"] | {"failurePolice": {}}}
    assert JobsetV1alpha2JobSet.from_dict(misspelt).to_dict() != misspelt  # the models drop what they do not know


def test_the_job_in_it_is_strictly_what_kubernetes_takes(job):
    whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "node"}, "spec": job}
    kubernetes_validate.validate(whole, kubernetes_validate.latest_version(), strict=True)


def test_a_refused_run_ends_and_any_other_starts_all_nodes_again(jobset, job):
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"]["values"] == [2]
    assert STOPPED not in rule["onExitCodes"]["values"]
    assert job["backoffLimit"] == 0
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] > 0
    assert [(rule["action"], rule["onJobFailureReasons"]) for rule in policy["rules"]] == [
        ("FailJobSet", ["PodFailurePolicy"])
    ]


def test_the_nodes_their_ranks_and_the_first_ones_name_fit_together(jobset, job, container):
    values = {entry["name"]: entry["value"] for entry in container["env"]}
    (replicated,) = jobset["spec"]["replicatedJobs"]
    name = jobset["metadata"]["name"]
    assert job["completions"] == job["parallelism"]
    assert int(values["GPUS"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert int(values["WORLD_SIZE"]) == int(values["GPUS"]) * job["completions"]
    assert values["MASTER_ADDR"] == f"{name}-{replicated['name']}-0-0.{name}"  # as JobSet names the first pod


def test_the_recipe_is_one_that_launches_with_these_arguments(container):
    arguments = container["args"]
    recipe, *overrides = arguments[arguments.index("launch") + 1 :]
    loaded = load_recipe(REPOSITORY / recipe, [value.replace("BUCKET", "bucket") for value in overrides])
    assert loaded.save_folder is not None
    assert loaded.data.remote is not None


def test_shared_memory_is_memory_and_keys_come_from_a_secret_alone(job, container):
    volumes = {volume["name"]: volume for volume in job["template"]["spec"]["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    assert container["envFrom"] == [{"secretRef": {"name": "rotary-foundry"}}]
    assert {entry["name"] for entry in container["env"]} == {"GPUS", "WORLD_SIZE", "MASTER_ADDR"}
    assert job["template"]["spec"]["securityContext"]["runAsNonRoot"]


def started(container: dict, folder: Path, seconds: float, status: int) -> subprocess.Popen:
    """The container's command, as process 1 of its own, over two ranks."""
    (folder / "rank.py").write_text(RANK.format(seconds=seconds, status=status, stopped=STOPPED))
    alone = ["unshare", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    tried = subprocess.run([*alone, "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"namespaces cannot be made here: {tried.stderr.strip()}")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    python, script = container["command"]
    command = [*alone, python, str(REPOSITORY / script), "-n", "2", "rank.py"]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.long
def test_a_pod_that_is_told_to_go_tells_its_ranks_and_ends_with_their_status(container, tmp_path):
    pod = started(container, tmp_path, seconds=120, status=0)
    deadline = time.monotonic() + 90
    while not all((tmp_path / f"ready{rank}").exists() for rank in (0, 1)):
        assert pod.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (first,) = Path(f"/proc/{pod.pid}/task/{pod.pid}/children").read_text().split()
    os.kill(int(first), signal.SIGTERM)
    assert pod.wait(timeout=60) == STOPPED
    assert [(tmp_path / str(rank)).read_text() for rank in (0, 1)] == ["told to stop"] * 2


@pytest.mark.long
def test_a_pod_ends_with_the_status_of_its_ranks(container, tmp_path):
    for status in (0, 2):
        assert started(container, tmp_path, seconds=0, status=status).wait(timeout=120) == status
