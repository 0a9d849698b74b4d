"""A rank that fails says to the others whether the same command may go on, and all end with the status of the first."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from socket import socket

import pytest
from composer.core import Event
from torch import distributed
from torch.multiprocessing import ProcessExitedException

from rotary_foundry.callbacks import last_progress
from rotary_foundry.callbacks.last_progress import LastProgress
from rotary_foundry.training import ranks
from rotary_foundry.training.ranks import one_reason, watching
from rotary_foundry.utils.errors import FAILED, REFUSED, DataError, Fault, FoundryError

from ..ranks import on_ranks


def _in_a_collective(error: Exception, fault: bool) -> None:
    with pytest.raises(FoundryError, match="boom") as ended, one_reason(), watching(60):
        if distributed.get_rank() == 1:
            raise error
        distributed.barrier()
    assert isinstance(ended.value, Fault) == fault


@pytest.mark.parametrize(
    ("error", "fault"),
    [(DataError("boom"), False), (Fault("boom"), True), (ValueError("boom"), True), (OSError("boom"), True)],
)
def test_a_rank_in_a_collective_ends_as_the_first_that_failed(tmp_path, error, fault):
    on_ranks(2, tmp_path, _in_a_collective, error, fault)


def _elsewhere(error: Exception) -> None:
    with suppress(FoundryError), one_reason(), watching(60):
        if distributed.get_rank() == 1:
            raise error
        time.sleep(60)
    time.sleep(60)  # the other one is to end first


@pytest.mark.parametrize(("error", "status"), [(DataError("boom"), REFUSED), (ValueError("boom"), FAILED)])
def test_a_rank_that_does_not_come_back_ends_with_the_status_of_the_first_that_failed(tmp_path, error, status):
    with pytest.raises(ProcessExitedException) as ended:
        on_ranks(2, tmp_path, _elsewhere, error)
    assert ended.value.exit_code == status


WAITS = """
import signal
from composer.utils import dist
from rotary_foundry.training.ranks import ended_by_sigterm
handler = signal.getsignal(signal.SIGTERM)
with ended_by_sigterm():
    pass
assert signal.getsignal(signal.SIGTERM) is handler is not signal.SIG_DFL
with ended_by_sigterm():
    print("waits", flush=True)
    dist.initialize_dist("cpu", timeout=300)
"""


def test_a_rank_that_waits_for_one_that_does_not_come_ends_at_a_sigterm():
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2, "NODE_RANK": 0, "MASTER_PORT": port}
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1"} | {name: str(value) for name, value in place.items()}
    with subprocess.Popen([sys.executable, "-c", WAITS], env=environment, stdout=subprocess.PIPE, text=True) as rank:
        assert rank.stdout.readline() == "waits\n"
        time.sleep(1)  # from Python into torch, which then waits
        rank.terminate()
        try:
            assert rank.wait(30) == -signal.SIGTERM
        finally:
            rank.kill()


class Clock:
    """The monotonic clock of the watching thread, set by a test."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


class Watched:
    """A rank of two whose thread watches by a test's clock; another backend than gloo only by name."""

    def __init__(self, monkeypatch, backend: str):
        self.clock, self.store, self.over = Clock(), distributed.HashStore(), threading.Event()
        self.status: list[int] = []
        monkeypatch.setattr(ranks, "LOOKS", 0.01)
        monkeypatch.setattr(ranks, "COMES_BACK", 0.01)
        monkeypatch.setattr(ranks, "default_store", lambda: self.store)
        monkeypatch.setattr(ranks.torch.distributed, "get_backend", lambda: backend)
        for name, value in {"world_size": 2, "local_world_size": 2, "global_rank": 0, "local_rank": 0}.items():
            monkeypatch.setattr(ranks.dist, f"get_{name}", lambda value=value: value)
        monkeypatch.setattr(last_progress, "time", self.clock)
        monkeypatch.setattr(ranks.os, "_exit", self._exit)
        monkeypatch.setattr(ranks, "_seen", set())

    def _exit(self, status: int) -> None:
        self.status.append(status)
        self.over.set()

    @contextmanager
    def watch(self, dist_timeout: float):
        thread = threading.Thread(target=ranks._watch, args=(self.over, dist_timeout))
        thread.start()
        try:
            yield
        finally:
            self.over.set()
            thread.join(60)

    def at(self, seconds: float) -> None:
        self.clock.now = seconds
        time.sleep(0.3)  # thirty looks

    def step(self, event: Event) -> None:
        LastProgress().run_event(event, None, None)


@pytest.mark.parametrize("event", sorted(last_progress.STEPS, key=str))
def test_before_nccl_may_abort_a_rank_it_says_once_that_no_update_has_ended(monkeypatch, capfd, event):
    watched = Watched(monkeypatch, "nccl")
    watched.step(event)
    with watched.watch(dist_timeout=600):
        watched.at(589)
        assert capfd.readouterr().err == ""
        watched.at(590)
        watched.at(595)
        said = capfd.readouterr().err
        watched.step(event)
        watched.at(1184)
        assert capfd.readouterr().err == ""
        watched.at(1185)
        again = capfd.readouterr().err
    assert said.count("\n") == again.count("\n") == 1
    assert said.startswith("warning: no update has ended for 590 s; if a rank hangs, or a node or the network failed,")
    assert "a collective has waited for dist_timeout=600 s, and the same command resumes" in said
    assert watched.status == []


def test_gloo_reports_a_time_out_itself(monkeypatch, capfd):
    watched = Watched(monkeypatch, "gloo")
    watched.step(Event.BATCH_END)
    with watched.watch(dist_timeout=600):
        watched.at(601)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("seconds", "says"), [(300, "rank 1 ended without"), (599, "within dist_timeout=600 s")])
def test_a_rank_that_ends_when_no_update_has_for_dist_timeout_was_not_killed_by_hand(monkeypatch, capfd, seconds, says):
    watched = Watched(monkeypatch, "nccl")
    watched.step(Event.BATCH_END)
    other = subprocess.Popen(["sleep", "600"])
    watched.store.set(f"{ranks.PROCESS}0", str(os.getpid()))
    watched.store.set(f"{ranks.PROCESS}1", str(other.pid))
    try:
        with watched.watch(dist_timeout=600):
            watched.at(seconds)  # alive, so far
            other.kill()
            other.wait()
            assert watched.over.wait(60)
    finally:
        other.kill()
    assert watched.status == [FAILED]
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and says in error
