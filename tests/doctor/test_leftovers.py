"""Streaming's leftovers of really killed processes, on a /dev/shm of the test's own."""

import json
import os
import sys

import pytest
from filelock import FileLock

from rotary_foundry.doctor import leftovers
from rotary_foundry.doctor.finding import DOUBTFUL, GOOD
from rotary_foundry.doctor.leftovers import check_leftovers, find_leftovers

from ..data.conftest import ROW_LENGTH, ROWS
from .conftest import on_own_machine, only

# Two runs draw rows, in processes of their own. One is killed; the doctor comes; then the other goes on drawing. All
# are forks, since each would take seconds to import torch.
TWO_RUNS = """
import ctypes, json, os, signal
from torch.utils.data import DataLoader
from rotary_foundry.data.stream import Draw, TrainingStream
from rotary_foundry.doctor.leftovers import check_leftovers

PR_SET_CHILD_SUBREAPER = 36

def pipe():
    read, write = os.pipe()
    return os.fdopen(read), os.fdopen(write, "w", buffering=1)

def start():
    (commands, command), (answers, answer) = pipe(), pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        rows = TrainingStream({sources}, "{local}", None, {row_length}, 1 << 18, Draw(17, 0, None, 0, 40, 10))
        loader = iter(DataLoader(rows, batch_size=10, num_workers=1, collate_fn=list))
        next(loader)
        print("drawn", file=answer)
        commands.readline()
        print(sum(len(batch) for batch in loader), file=answer)
        raise SystemExit
    return pid, command, answers

def said():
    return [f"{{found.mark}} {{found.said}}" for clean in (False, True, False) for found in check_leftovers(clean)]

def files():
    return sorted(os.listdir("/dev/shm")), sorted(name for name in os.listdir("{tmp}") if "lock" in name)

assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1) == 0
killed, _, answers = start()
live, command, live_answers = start()
assert answers.readline() == live_answers.readline() == "drawn\\n"
os.killpg(killed, signal.SIGKILL)
try:
    while True:  # its worker, too, whose parent this process has become
        os.waitpid(-killed, 0)
except ChildProcessError:
    pass
told = dict(killed=killed, live=live, before=files(), said=said(), after=files())
print("go on", file=command)
told["drawn"] = live_answers.readline().strip()
os.waitpid(live, 0)
print(json.dumps(told | dict(end=files())))
"""


@pytest.mark.long
def test_what_a_killed_run_left_is_removed_and_a_live_run_goes_on(row_folder, tmp_path):
    code = TWO_RUNS.format(sources=list(ROWS), local=row_folder, row_length=ROW_LENGTH, tmp=tmp_path)
    run = on_own_machine({"/dev/shm": "64m"}, [sys.executable, "-c", code], TMPDIR=str(tmp_path))
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout.splitlines()[-1])

    def of(pid: int, names: list[str]) -> list[str]:
        return [name for name in names if int(name.split("_")[0]) // 1000 == told[pid]]

    (segments, locks), after = told["before"], told["after"]
    assert of("killed", segments)
    assert of("killed", locks)
    found, removed, then = told["said"]
    assert found.startswith(f"{DOUBTFUL} {len(of('killed', segments))} segments (")
    assert f" and {len(of('killed', locks))} lock files of killed runs; data sets in use, left alone: 1" in found
    assert removed.startswith(f"{GOOD} removed: ")
    assert then == f"{GOOD} none of killed runs; data sets in use, left alone: 1"
    assert after == [of("live", segments), of("live", locks)]
    assert after[0]
    assert told["drawn"] == str(39 * 10)  # the rest of what it was to draw
    assert told["end"] == [[], []]  # a run that ends well needs no doctor: mosaicml/streaming#893


def test_a_lock_that_is_held_stays_and_whoever_waits_for_one_that_goes_still_gets_it(tmp_path):
    shm, held, free = tmp_path / "shm", tmp_path / "007000_cache_filelock", tmp_path / "008000_barrier_filelock"
    shm.mkdir()
    free.touch()
    with FileLock(held):
        assert "1 lock files" in only(check_leftovers(True, shm, tmp_path)).said
    assert held.exists()
    assert not free.exists()
    with FileLock(free, timeout=1):
        assert free.exists()


def test_files_that_only_look_like_streamings_and_those_of_other_users_are_left_alone(tmp_path, monkeypatch):
    target = tmp_path / "target"
    target.write_text("of somebody")
    (tmp_path / "007000_locals").symlink_to(target)
    for name in ("7_locals", "007000_locals.txt", "my_007000_barrier", "nccl-abc"):
        (tmp_path / name).touch()
    assert not find_leftovers(tmp_path, tmp_path).segments
    (tmp_path / "009000_locals").touch()
    assert [path.name for path in find_leftovers(tmp_path, tmp_path).segments] == ["009000_locals"]
    monkeypatch.setattr(leftovers.os, "geteuid", lambda: os.getuid() + 1)  # stands for being somebody else
    found = only(check_leftovers(True, tmp_path, tmp_path))
    assert found.mark == GOOD
    assert "; files of other users, left alone: 2" in found.said
    assert (tmp_path / "009000_locals").exists()
