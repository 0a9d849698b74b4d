"""One launch at a time trains in a run's folder: real launches side by side, suspended, killed and taken over."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace

import pytest

from rotary_foundry.runs.record_files import read_lines
from rotary_foundry.runs.run_folder import RunFolder
from rotary_foundry.runs.run_lock import BEAT, LOCK, Holder
from rotary_foundry.utils.errors import REFUSED

from ..object_store import bucket
from .conftest import REPOSITORY, TAMPERED_LAUNCH
from .runs import records

# The tiny recipe as one process takes seconds for it: four updates, of three stages.
SHORT = (
    *("rollback.at=null", "stages.pretrain.batch_size_ramp=null", "stages.pretrain.duration=1536tok"),
    *("stages.pretrain.t_warmup=0tok", "stages.extend.duration=1024tok", "stages.decay.duration=1024tok"),
)

# Starts what `composer -n 1` starts, twice at the same moment, and kills the one that goes on when the other has ended.
# Both are forks of a process that has imported `launch/` and not torch.
TEN_TIMES = """
import json, os, runpy, signal, sys
launch = runpy.run_path("launch/__main__.py")["main"]
for _ in range(10):
    begin, errors = os.pipe(), {}
    for _ in range(2):
        error, to_error = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(begin[1])
            os.dup2(to_error, 2)
            os.dup2(to_error, 1)
            os.read(begin[0], 1)  # until it is closed
            os._exit(launch(sys.argv[1:]))
        os.close(to_error)
        errors[process] = error
    os.close(begin[0])
    os.close(begin[1])
    ended, status = os.wait()
    (other,) = errors.keys() - {ended}
    os.kill(other, signal.SIGKILL)
    os.waitpid(other, 0)
    said = os.read(errors[ended], 1 << 16).decode()
    print(json.dumps([os.waitstatus_to_exitcode(status), other, said]), flush=True)
"""


def refusal(launched) -> str:
    assert launched.returncode == REFUSED, launched.stderr
    (error,) = [line for line in launched.stderr.splitlines() if line.startswith("error: ")]
    return error


@contextmanager
def suspended_after(update: int, tiny, *overrides: str):
    """A launch whose rank stops, as by SIGSTOP, after an update: its process number, and what becomes of the launch."""
    name = next(override for override in overrides if override.startswith("run_name=")).removeprefix("run_name=")
    run = RunFolder(tiny.folder / "runs" / name)
    environment = {"KILL_AT": f"update:{update}", "KILL_RANK": "0", "SIGNAL": "SIGSTOP"}
    with ThreadPoolExecutor() as pool:
        launched = pool.submit(tiny.launch, *overrides, ranks=1, script=TAMPERED_LAUNCH, **environment)
        while len(read_lines(run.metrics)) < update:
            assert launched.running(), launched.result().stderr
            time.sleep(0.1)
        rank = Holder.read((run.path / LOCK).read_bytes()).process
        try:
            yield rank, launched
        finally:
            if launched.running():
                os.kill(rank, signal.SIGKILL)


def test_of_two_launches_at_the_same_moment_one_trains_and_one_is_refused(tiny):
    run = RunFolder(tiny.folder / "runs/side-by-side")
    with ThreadPoolExecutor() as pool:
        launches = [
            pool.submit(tiny.launch, f"run_name={run.path.name}", f"seed={seed}", *SHORT, ranks=1) for seed in (1, 2)
        ]
        refused, trained = sorted((launch.result() for launch in launches), key=lambda one: -one.returncode)
    assert trained.returncode == 0, trained.stderr
    assert f"'runs_folder': {run.path}: process " in refusal(refused)
    assert f" on {os.uname().nodename}, since " in refused.stderr
    assert [line["batch"] for line in read_lines(run.metrics)] == [1, 2, 3, 4]
    assert not (run.path / LOCK).exists()


def test_ten_times_out_of_ten_one_of_two_is_refused_also_where_a_killed_one_was_before(tiny):
    run = tiny.folder / "runs/ten-times"
    command = [sys.executable, "-c", TEN_TIMES, str(tiny.recipe), f"run_name={run.name}", *SHORT]
    tried = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=280)
    assert tried.returncode == 0, tried.stderr
    outcomes = [json.loads(line) for line in tried.stdout.splitlines()]
    assert len(outcomes) == 10
    for status, other, said in outcomes:
        assert status == REFUSED
        assert f"error: 'runs_folder': {run}: process {other} on {os.uname().nodename}, since " in said


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_run_is_refused_while_it_lives_goes_on_when_it_is_killed_and_stops_when_it_is_taken_over(tiny):
    launch = ("run_name=held", "save_interval=100ba", *SHORT)
    run = RunFolder(tiny.folder / "runs/held")
    with suspended_after(1, tiny, *launch) as (rank, launched):
        refused = tiny.launch(*launch, "seed=3", ranks=1)
        assert f"'runs_folder': {run.path}: process {rank} on {os.uname().nodename}, since " in refusal(refused)
        other = json.dumps(asdict(replace(Holder.this(), host="elsewhere")))
        (run.path / LOCK).write_text(other)
        time.sleep(1.5 * BEAT)
        os.kill(rank, signal.SIGCONT)
        assert f"{run.path}/{LOCK}: was taken over by process {os.getpid()} on elsewhere" in refusal(launched.result())
    assert [line["batch"] for line in read_lines(run.metrics)] == [1]
    assert not list(run.checkpoints.glob("*"))
    assert (run.path / LOCK).read_text() == other
    (run.path / LOCK).unlink()
    killed = tiny.launch(*launch, ranks=1, script=TAMPERED_LAUNCH, KILL_AT="update:3", KILL_RANK="0")
    assert "crashed with exit code -9" in killed.stderr
    assert (run.path / LOCK).exists()
    resumed = tiny.launch(*launch, ranks=1)
    assert resumed.returncode == 0, resumed.stderr
    assert "takes it over if it is not renewed" not in resumed.stdout
    assert len(records(run.path)) == 4
    assert not (run.path / LOCK).exists()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_run_in_a_store_is_refused_to_a_machine_that_shares_no_disk(tiny, tmp_path):
    with bucket("one-run"):
        launch = ("run_name=stored", "save_folder=s3://one-run/runs", "save_interval=1ba", *SHORT)
        elsewhere = f"runs_folder={tmp_path}/runs"
        with suspended_after(3, tiny, *launch) as (rank, launched):
            refused = tiny.launch(*launch, elsewhere, ranks=1)
            assert (
                f"'save_folder': s3://one-run/runs/stored: process {rank} on {os.uname().nodename}, since "
                in refusal(refused)
            )
            assert not list((tmp_path / "runs").rglob("recipe.yaml"))
            os.kill(rank, signal.SIGKILL)
            assert launched.result().returncode != 0
        shutil.rmtree(tiny.folder / "runs/stored")
        resumed = tiny.launch(*launch, elsewhere, ranks=1)
        assert resumed.returncode == 0, resumed.stderr
        assert "going on from ba" in resumed.stdout
        assert [record["batch"] for record in records(tmp_path / "runs/stored")] == [1, 2, 3, 4]
