"""The lock of a folder: real processes, also in namespaces of their own, which are other hosts and containers to it."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from rotary_foundry.runs.run_lock import LOCK, Holder, LockFile, LockObject, RunLock
from rotary_foundry.utils.errors import ConfigurationError, FoundryError
from rotary_foundry.utils.object_store import Bucket

from .namespaces import why_not
from .object_store import bucket

BEAT, GONE_AFTER = 0.2, 3.0  # seconds
HOLD = f"""
import sys
from pathlib import Path
from rotary_foundry.runs.run_lock import LockFile, RunLock
from rotary_foundry.utils.errors import FoundryError

try:
    with RunLock(LockFile(Path(sys.argv[1]), "out"), {BEAT}, {GONE_AFTER}) as lock:
        print("held", flush=True)
        sys.stdin.readline()
        lock.check()
        print("still held", flush=True)
except FoundryError as error:
    print(error, flush=True)
"""
# Eight processes begin at the same moment. Each says whether it got the lock, and keeps it until all have spoken.
RACE = f"""
import fcntl, os, sys
from pathlib import Path
from rotary_foundry.runs.run_lock import LockFile, RunLock
from rotary_foundry.utils.errors import ConfigurationError

def no_flock(*_):
    raise OSError

if len(sys.argv) > 2:
    fcntl.flock = no_flock
begin, end, said = os.pipe(), os.pipe(), os.pipe()
for _ in range(8):
    if os.fork() == 0:
        os.close(begin[1])
        os.close(end[1])
        os.read(begin[0], 1)  # until it is closed
        try:
            with RunLock(LockFile(Path(sys.argv[1]), "out"), {BEAT}, {GONE_AFTER}):
                os.write(said[1], b"t")
                os.read(end[0], 1)
        except ConfigurationError:
            os.write(said[1], b"r")
        os._exit(0)
os.close(begin[1])
words = dict(r="refused", t="taken")
print("outcomes", *sorted(words[os.read(said[0], 1).decode()] for _ in range(8)))
os.close(end[1])
for _ in range(8):
    os.wait()
"""
ELSEWHERE = ["--uts", "--mount"]
CONTAINER = ["--pid", "--fork", "--mount-proc"]


def lock_of(folder: Path) -> RunLock:
    return RunLock(LockFile(folder, "out"), BEAT, GONE_AFTER)


def on_another_host(folder: Path) -> list[str]:
    """What makes the command that follows run under another host name and another boot."""
    boot = folder.parent / "boot"
    boot.write_text("00000000-0000-4000-8000-000000000000\n")
    steps = f'hostname elsewhere && mount --bind {shlex.quote(str(boot))} /proc/sys/kernel/random/boot_id && exec "$@"'
    if reason := why_not(ELSEWHERE, f"set -- true; {steps}"):
        pytest.skip(reason)
    return ["unshare", *ELSEWHERE, "sh", "-c", steps, "sh"]


def in_a_container() -> list[str]:
    """What makes the command that follows run with process numbers of its own."""
    if reason := why_not(CONTAINER, "true"):
        pytest.skip(reason)
    return ["unshare", *CONTAINER]


@contextmanager
def holding(folder: Path, *where: str) -> Iterator[subprocess.Popen]:
    """A process that holds a folder until it is given a line."""
    command = [*where, sys.executable, "-c", HOLD, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, start_new_session=True, **pipes)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_second_process_is_refused_with_host_process_and_time_of_the_first(tmp_path):
    with holding(tmp_path / "run") as first:
        holder = Holder.read((tmp_path / "run" / LOCK).read_bytes())
        with pytest.raises(ConfigurationError) as refused, lock_of(tmp_path / "run"):
            pass
        assert str(refused.value) == (
            f"'out': {tmp_path}/run: process {first.pid} on {os.uname().nodename}, since {holder.since}, is at work "
            "there; wait for it to end, stop it, or choose another folder with out=…"
        )
        assert first.communicate("\n")[0] == "still held\n"
    with lock_of(tmp_path / "run"):
        pass


def test_nothing_stays_of_a_folder_that_was_made_for_the_lock_and_all_of_one_that_is_in_use(tmp_path):
    with lock_of(tmp_path / "a/b"):
        assert (tmp_path / "a/b" / LOCK).exists()
    assert not (tmp_path / "a").exists()
    with lock_of(tmp_path / "a/b"):
        (tmp_path / "a/b/result").touch()
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["result"]


@pytest.mark.parametrize("reaped", [True, False])
def test_the_lock_of_a_killed_process_is_taken_over_without_waiting(tmp_path, capsys, reaped):
    with holding(tmp_path) as first:
        os.kill(first.pid, signal.SIGKILL)
        os.waitid(os.P_PID, first.pid, os.WEXITED | (0 if reaped else os.WNOWAIT))
        with lock_of(tmp_path) as lock:
            assert Holder.read((tmp_path / LOCK).read_bytes()).process == os.getpid()
            lock.check()
    assert capsys.readouterr().out == ""


def test_another_process_that_has_got_the_number_of_the_killed_one_is_not_taken_for_it(tmp_path, capsys):
    here = Holder.this()
    (tmp_path / LOCK).write_text(json.dumps(asdict(replace(here, start=here.start - 1))))
    with lock_of(tmp_path):
        pass
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("where", ["another host", "a container", "another host, long gone"])
def test_what_cannot_be_asked_is_refused_while_it_renews_its_lock_and_gone_when_it_does_not(tmp_path, capsys, where):
    run = tmp_path / "run"
    with holding(run, *(in_a_container() if where == "a container" else on_another_host(run))) as first:
        holder = Holder.read((run / LOCK).read_bytes())
        with pytest.raises(ConfigurationError, match=r"run/lock\.json was renewed just now; if that machine fails"):
            lock_of(run).__enter__()
        kill(first)
        if where == "another host, long gone":
            os.utime(run / LOCK, (0, 0))  # its clock, or this disk's, is of no account
        capsys.readouterr()
        with lock_of(run):
            assert Holder.read((run / LOCK).read_bytes()).process == os.getpid()
    assert capsys.readouterr().out == (
        f"{run}/lock.json: process {holder.process} on {holder.host}, since {holder.since}, holds it and cannot be "
        f"checked from here; this process takes it over if it is not renewed for {GONE_AFTER:g} s\n"
    )
    if where != "a container":
        assert holder.host == "elsewhere"


def test_a_process_that_was_suspended_for_so_long_that_it_counted_as_gone_stops(tmp_path):
    run = tmp_path / "run"
    with holding(run, *on_another_host(run)) as first:
        os.killpg(first.pid, signal.SIGSTOP)
        with lock_of(run) as lock:
            first.stdin.write("\n")
            first.stdin.flush()
            os.killpg(first.pid, signal.SIGCONT)
            said = first.communicate()[0]
            lock.check()
            assert (run / LOCK).exists()
        assert f"{run}/lock.json: was taken over by process {os.getpid()} on {os.uname().nodename}, since " in said


def test_a_lock_that_somebody_removes_stops_its_holder(tmp_path):
    with lock_of(tmp_path / "run") as lock:
        (tmp_path / "run" / LOCK).unlink()
        while True:
            try:
                lock.check()
            except FoundryError as error:
                assert "lock.json: was removed while this process held it" in str(error)
                return


@pytest.mark.parametrize("disk", [[], ["without flock"]])
@pytest.mark.parametrize("left", ["nothing", "a killed process's", "another host's"])
def test_of_many_that_begin_at_the_same_moment_one_gets_it(tmp_path, left, disk):
    run = tmp_path / "run"
    if left != "nothing":
        with holding(run, *(on_another_host(run) if left == "another host's" else ())) as first:
            kill(first)
    said = subprocess.run([sys.executable, "-c", RACE, str(run), *disk], capture_output=True, text=True, timeout=60)
    assert said.stdout.splitlines()[-1].split() == ["outcomes", *7 * ["refused"], "taken"], said


@pytest.mark.parametrize("content", [b"", b'{"process": 1}'])
def test_a_lock_that_cannot_be_read_is_watched_and_taken_over(tmp_path, capsys, content):
    (tmp_path / LOCK).write_bytes(content)
    with lock_of(tmp_path) as lock:
        lock.check()
    assert capsys.readouterr().out == (
        f"{tmp_path}/lock.json: cannot be read as a lock; this process takes it over if it is not renewed for 3 s\n"
    )


def test_a_folder_in_the_place_of_the_lock_and_a_file_in_that_of_the_folder_are_named(tmp_path):
    (tmp_path / "run" / LOCK).mkdir(parents=True)
    with pytest.raises(ConfigurationError, match=r"'out': .*run/lock\.json: cannot be read or written: Is a directory"):
        lock_of(tmp_path / "run").__enter__()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"'out': .*file/run: cannot be read or written: Not a directory"):
        lock_of(tmp_path / "file/run").__enter__()
    with pytest.raises(ConfigurationError, match=r"'out': .*cannot be read or written: embedded null byte"):
        lock_of(tmp_path / "a\0b").__enter__()


@pytest.mark.parametrize(
    ("mount", "reason"),
    [
        ("-o size=4k none {place} && head -c 4096 /dev/zero > {place}/full", "No space left on device"),
        ("-o ro none {place}", "Read-only file system"),
    ],
)
def test_a_disk_that_takes_no_lock_is_named_and_left_as_it_was(tmp_path, mount, reason):
    steps = f"mount -t tmpfs {mount.format(place=tmp_path)}"
    if why := why_not(["--mount"], steps):
        pytest.skip(why)
    command = shlex.join([sys.executable, "-c", HOLD, str(tmp_path)])
    shell = ["unshare", "--mount", "sh", "-c", f"{steps} && {command} && ls -A {tmp_path}"]
    said = subprocess.run(shell, capture_output=True, text=True, timeout=60)
    assert said.stdout.splitlines()[0].startswith(f"'out': {tmp_path}/lock.json: cannot be read or written: {reason}")
    assert said.stdout.splitlines()[1:] in ([], ["full"])


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    with bucket("locks"):
        yield "s3://locks"


@pytest.fixture(params=["conditional writes", "no conditional writes"])
def stored(request, store, tmp_path, monkeypatch) -> Bucket:
    """A run's part of a store; a store may refuse to write on a condition."""
    found = Bucket(f"{store}/{tmp_path.name}")
    if request.param == "no conditional writes":
        put = found.objects.client.put_object

        def refusing(**arguments):
            if arguments.keys() & {"IfMatch", "IfNoneMatch"}:
                raise ClientError(
                    {"Error": {"Code": "NotImplemented"}, "ResponseMetadata": {"HTTPStatusCode": 501}}, "PutObject"
                )
            return put(**arguments)

        monkeypatch.setattr(found.objects.client, "put_object", refusing)
    return found


def test_a_store_is_held_by_one_machine_and_taken_over_when_that_is_gone(stored, capsys):
    with RunLock(LockObject(stored), BEAT, GONE_AFTER) as first:
        with pytest.raises(
            ConfigurationError, match=rf"'save_folder': {stored.url}: process {os.getpid()} on .* is at"
        ):
            RunLock(LockObject(stored), BEAT, GONE_AFTER).__enter__()
        first.check()
    assert stored.look(LOCK) is None
    gone = json.dumps(asdict(replace(Holder.this(), host="gone", boot="another")))
    stored.write(LOCK, gone.encode())
    with RunLock(LockObject(stored), BEAT, GONE_AFTER) as second:
        assert "on gone, since" in capsys.readouterr().out
        second.check()
        stored.write(LOCK, gone.encode())
        with pytest.raises(FoundryError, match=r"lock\.json: was taken over by process \d+ on gone"):
            while True:
                second.check()
    assert stored.look(LOCK)[0] == gone.encode()


def test_of_two_that_begin_at_the_same_moment_one_gets_the_store(stored):
    begin, ended = threading.Barrier(2), threading.Barrier(2)

    def begins(_: int) -> bool:
        begin.wait()
        try:
            with RunLock(LockObject(stored), BEAT, GONE_AFTER):
                ended.wait()
                return True
        except ConfigurationError:
            ended.wait()
            return False

    with ThreadPoolExecutor() as pool:
        assert sorted(pool.map(begins, range(2))) == [False, True]
    assert stored.look(LOCK) is None


def test_another_machine_that_renews_its_lock_in_the_store_is_not_taken_over(store, tmp_path, monkeypatch):
    url = f"{store}/{tmp_path.name}"
    with monkeypatch.context() as patched:
        patched.setattr(Holder, "lives", lambda _: None)
        with RunLock(LockObject(Bucket(url)), BEAT, GONE_AFTER) as first:
            with pytest.raises(ConfigurationError, match=r"lock\.json was renewed just now"):
                RunLock(LockObject(Bucket(url)), BEAT, GONE_AFTER).__enter__()
            first.check()


def test_an_object_is_written_only_over_the_one_that_was_seen(store, tmp_path):
    objects = Bucket(f"{store}/{tmp_path.name}")
    assert not objects.write_over("object", b"1", '"0"')
    assert objects.write_over("object", b"1", None)
    assert not objects.write_over("object", b"2", None)
    content, (etag, _) = objects.look("object")
    assert content == b"1"
    assert objects.write_over("object", b"2", etag)
    assert not objects.write_over("object", b"3", etag)
    missing = Bucket("s3://no-such-bucket/run")
    for use in (lambda: missing.look("object"), lambda: missing.write_over("object", b"1", None)):
        with (
            pytest.raises(FoundryError, match=r"'save_folder': s3://no-such-bucket/run: .*NoSuchBucket"),
            missing.reported(),
        ):
            use()
