"""What the person at the terminal sees of a whole run, and of one that fails: real processes, on a pty."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest

from rotary_foundry import compile_plan, load_recipe
from rotary_foundry.loggers.stage_progress import short
from rotary_foundry.utils.errors import FAILED

from .conftest import REPOSITORY, TAMPERED_LAUNCH, Tiny
from .runs import records

RED, PLAIN = "\x1b[31m", "\x1b[0m"
LAUNCHERS = re.compile(r"(ERROR|WARNING):composer\.cli\.launcher:|Waiting up to 30 seconds|Global rank 0 \(PID \d+\) ")


def on_a_terminal(tiny: Tiny, *overrides: str, **environment: str) -> tuple[int, str]:
    """The real command's status and all that a terminal of 100 columns gets from it."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    composer = [str(Path(sys.executable).parent / "composer"), "-n", "2", str(TAMPERED_LAUNCH), str(tiny.recipe)]
    without = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS")}
    running = subprocess.Popen(
        [*composer, *overrides],
        cwd=REPOSITORY,
        env=without | {"OMP_NUM_THREADS": "1", "TERM": "xterm"} | environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    written = bytearray()

    def read() -> None:
        while True:
            try:
                written.extend(os.read(ours, 1 << 16))
            except OSError:  # the last process has closed it
                return

    reading = threading.Thread(target=read)
    reading.start()
    status = running.wait(timeout=280)
    reading.join(timeout=30)
    os.close(ours)
    return status, written.decode().replace("\r\n", "\n")


def failure(printed: str) -> str:
    """The one red block, after which there are only the lines that the launcher cannot be kept from printing."""
    (block,) = re.findall(re.escape(RED) + r"error: (.*?)" + re.escape(PLAIN), printed, flags=re.DOTALL)
    after = printed.split(block + PLAIN)[1]
    assert all(LAUNCHERS.match(line) for line in after.splitlines() if line), after
    assert "Traceback" not in printed
    assert "Begin global rank" not in printed
    return block


def logs(tiny: Tiny, run_name: str) -> list[str]:
    return [(tiny.folder / f"runs/{run_name}/logs/rank{rank}.log").read_text() for rank in range(2)]


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_ranks_error_comes_last_in_red_and_every_traceback_is_in_the_logs(tiny, rank):
    name = f"raised-{rank}"
    status, printed = on_a_terminal(
        tiny, f"run_name={name}", "progress_bar=true", KILL_AT="update:6", KILL_RANK=str(rank), RAISE="ValueError"
    )
    assert status == FAILED
    log = tiny.folder / f"runs/{name}/logs/rank{rank}.log"
    assert failure(printed) == f"rank {rank}: ValueError: boom (traceback: {log})"
    written = logs(tiny, name)
    assert "Traceback (most recent call last)" in written[rank]
    assert "ValueError: boom" in written[rank]
    assert "this rank ends" in written[1 - rank]
    bars = printed.rindex("at this rate")
    assert bars < printed.index(RED)
    assert len(records(tiny.folder / "runs" / name)) == 6


@pytest.mark.long
def test_an_error_that_a_user_can_put_right_is_one_line(tiny):
    environment = {"KILL_AT": "update:6", "KILL_RANK": "1", "RAISE": "DataError"}
    status, printed = on_a_terminal(tiny, "run_name=data", **environment)
    assert (status, failure(printed)) == (2, "boom")
    assert "DataError: boom" in logs(tiny, "data")[1]


@pytest.mark.long
def test_a_rank_that_is_killed_is_named_and_what_it_did_to_the_others_is_not_said(tiny):
    status, printed = on_a_terminal(tiny, "run_name=gone", KILL_AT="update:6", KILL_RANK="1")
    assert status == FAILED
    assert failure(printed).startswith(
        "rank 1 ended without reporting a reason: it was killed, by hand or by the kernel for lack"
    )
    assert "Connection" not in printed
    assert "this rank ends" in logs(tiny, "gone")[0]


@pytest.mark.long
def test_a_rank_that_hangs_ends_the_run_in_dist_timeout_with_a_sentence_of_its_own(tiny):
    status, printed = on_a_terminal(
        tiny, "run_name=hangs", "dist_timeout=10", KILL_AT="update:6", KILL_RANK="1", SIGNAL="SIGSTOP"
    )
    assert status == FAILED
    assert failure(printed).startswith(
        "no answer from other ranks within dist_timeout=10 s: a node or the network failed"
    )
    assert "Timed out waiting" in logs(tiny, "hangs")[0]


@pytest.mark.long
def test_a_run_that_is_told_to_stop_ends_without_other_ranks_noise(tiny):
    environment = {"KILL_AT": "update:6", "KILL_RANK": "1", "SIGNAL": "SIGTERM"}
    status, printed = on_a_terminal(tiny, "run_name=told", **environment)
    assert status == 75
    assert "stopped as asked after update 6, which is saved; the same command goes on from there" in printed
    assert RED not in printed
    assert "Begin global rank" not in printed


def test_without_a_terminal_a_run_prints_its_summary_and_plain_lines(tiny):
    run = tiny.launch("run_name=quiet", "progress_bar=true", "console_log_interval=4ba", ranks=1)
    assert run.returncode == 0, run.stderr[-4000:]
    printed = run.stdout
    assert "\x1b" not in printed + run.stderr and "\r" not in printed + run.stderr
    head = printed.split("update 1 is done")[0].splitlines()
    assert head[0].startswith("quiet: 14,336 tokens in 20 updates")
    assert len(head) <= 25
    plan = compile_plan(load_recipe(tiny.recipe))
    lines = [line for line in printed.splitlines() if "ETA" in line]
    kept = {record["token"]: record for record in records(tiny.folder / "runs/quiet")}
    for token in (plan.segments[0].tokens_per_update, 6144 + 4 * 1024, plan.total_tokens):
        (line,) = [line for line in lines if f" {short(token)}/{short(plan.total_tokens)} tok " in line]
        assert line.startswith(kept[token]["stage"])
        assert f"loss {kept[token]['loss']:.3f}" in line
    assert sum("held-out loss" in line for line in printed.splitlines()) == 3
