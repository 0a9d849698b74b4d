"""`launch/stoppable.py` and the ranks that it starts, without a run in them: what signals do."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rotary_foundry.utils.errors import FAILED, STOPPED

from ..training.conftest import REPOSITORY

# A rank that takes a while before it can act on SIGUSR1, as a run does, and has a stand-in for a loader's worker.
RANK = f"""
import os, signal, subprocess, sys, time
asked = []
worker = subprocess.Popen(["sleep", "60"])
print("started", flush=True)
time.sleep(2)
signal.signal(signal.SIGUSR1, lambda *_: asked.append(1))
signal.pthread_sigmask(signal.SIG_UNBLOCK, {{signal.SIGUSR1}})
time.sleep(2)
alive = worker.poll() is None
worker.kill()
print("asked", len(asked), "worker", alive, flush=True)
sys.exit({STOPPED})
"""

# Ranks of which the second has failed; it is killed once that is told, or ends without a word. Or the first is killed.
FAILING = """
import os, signal, sys, time
if sys.argv[1] == "killed" and os.environ["RANK"] == "0":
    os.kill(os.getpid(), signal.SIGKILL)
if os.environ["RANK"] == "0":
    time.sleep(1)
    print("error: boom", file=sys.stderr, flush=True)
    sys.exit(2)
if sys.argv[1] == "told":
    time.sleep(60)
print("never heard", flush=True)
sys.exit(1)
"""


def blocked(pid: int) -> int:
    """The signals that a process blocks, as the kernel shows them: bit n - 1 is signal n."""
    (mask,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigBlk")]
    return int(mask.split()[1], 16)


@pytest.mark.long
def test_signals_to_every_process_and_before_there_is_a_rank_become_one_request_to_each_rank(tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    command = [sys.executable, "launch/stoppable.py", "-n", "2", str(script)]
    launcher = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, start_new_session=True)
    while not blocked(launcher.pid) & 1 << signal.SIGTERM - 1:
        time.sleep(0.01)
    launcher.send_signal(signal.SIGTERM)  # while it imports Composer
    while launcher.stdout.readline() != "started\n":
        assert launcher.poll() is None
    os.killpg(launcher.pid, signal.SIGTERM)  # the launcher, the ranks and their workers
    output, _ = launcher.communicate(timeout=200)
    assert launcher.returncode == STOPPED
    assert "asked 1 worker True" in output


@pytest.mark.long
@pytest.mark.parametrize("told", [True, False])
def test_a_failure_that_a_rank_has_told_stands_last_and_the_launcher_tells_any_other(tmp_path, told):
    script = tmp_path / "rank.py"
    script.write_text(FAILING)
    command = [sys.executable, "launch/stoppable.py", "-n", "2", str(script), "told" if told else "not"]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=200)
    if told:
        assert (run.returncode, run.stdout, run.stderr) == (2, "", "error: boom\n")
    else:
        assert run.returncode != 0
        assert "Begin global rank 1" in run.stderr and "never heard" in run.stderr


@pytest.mark.long
def test_a_killed_first_rank_ends_with_the_status_of_a_killed_rank(tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(FAILING)
    command = [sys.executable, "launch/stoppable.py", "-n", "2", str(script), "killed"]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=200)
    assert run.returncode == FAILED
    assert "Rank 0 crashed with exit code -9" in run.stderr
