"""Everything fails at random: `main(folder, seed, minutes)`, in namespaces of its own (test_chaos.py).

Trainings of all three families and a data preparation, which keep their results in an object store, are started,
disturbed, and started again by the same command until they are done. Their results must then be those of undisturbed
ones, bit for bit; then others begin. A seed draws what is started, what happens to it, and after how many updates or
tasks; the rest depends on the machine.

Every start has to end by itself, with a status that is documented for its fault and, if it fails, with an error in one
line. It may leave no process behind. One that finishes leaves no temporary file; what others leave, the doctor removes.
The clock is that of Python's `time.time` (jumping_clock.py).
"""

import logging
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import ExitStack, suppress
from multiprocessing import forkserver, set_forkserver_preload
from pathlib import Path

import psutil
import yaml

from rotary_foundry.doctor.leftovers import check_leftovers, find_leftovers
from rotary_foundry.runs.record_files import read_lines
from rotary_foundry.runs.run_folder import RunFolder
from rotary_foundry.utils import object_store
from rotary_foundry.utils.errors import FAILED, REFUSED, STOPPED
from tests import forked_composer
from tests.data_prep.inspection.tree import write_tree
from tests.data_prep.small_corpus import sentences, write_jsonl
from tests.object_store import bucket, serving
from tests.training import conftest, test_llama, test_roformer_v2
from tests.training.runs import assert_same_run

REPOSITORY = Path(__file__).parents[1]
STORE = "s3://chaos"
SHM = Path("/dev/shm")
TIMEOUT = 60  # seconds: the recipes' dist_timeout
OUTAGE = 1, 1.5 * TIMEOUT  # seconds, at least and at most
HANGS = 600  # seconds, after which a start counts as one that hangs
GONE = 60  # seconds, in which the processes of a start that has ended end
# Composer's launcher, when a rank has not ended 30 s after SIGTERM, because it waits for a network.
LAUNCHER_KILLED = 1


class Machine:
    """What can fail: the network of this namespace, a small disk, the clock, and a store; and what is left on it."""

    def __init__(self, folder: Path):
        self.folder, self.disk, self.tmp, self.clock = (folder / name for name in ("", "disk", "tmp", "clock"))
        self.tmp.mkdir()
        self.clock.write_text("0")
        with bucket(STORE.removeprefix("s3://")) as url:
            environment = os.environ.copy()
        os.environ |= environment  # what leads to the store
        self.port, self.server = int(url.rpartition(":")[2]), ExitStack()
        self.serve()
        set_forkserver_preload(list(forked_composer.PRELOADED))
        forkserver.ensure_running()
        self.own = set(psutil.pids())

    def serve(self) -> None:
        self.server.enter_context(serving(self.port))

    def processes(self) -> list[psutil.Process]:
        """What was started and lives."""
        found = []
        for number in set(psutil.pids()) - self.own:
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(number)
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def left(self) -> list[str]:
        """The files where there should be none."""
        return sorted(path.name for folder in (self.tmp, SHM) for path in folder.iterdir())

    def tidy_up(self) -> None:
        """Remove them, unless something lives that may need them."""
        if self.processes():
            return
        list(check_leftovers(True, SHM, self.tmp))
        found = find_leftovers(SHM, self.tmp)
        assert not found.segments, found.segments
        assert not found.locks, found.locks
        for path in (*self.tmp.iterdir(), *SHM.iterdir()):  # other libraries'
            shutil.rmtree(path) if path.is_dir() else path.unlink()


class Training:
    """A recipe's runs, on two ranks."""

    def __init__(self, machine: Machine, name: str, recipe: str, *overrides: str, **tree):
        self.name, self.folder = name, machine.disk / name
        self.overrides = [f"save_folder={STORE}/runs", f"dist_timeout={TIMEOUT}", *overrides]
        write_tree(self.folder / "data", **tree)
        yamls = REPOSITORY / "yamls"
        (self.folder / "recipe.yaml").write_text(
            recipe.format(folder=self.folder, yamls=yamls, nano=yamls / "main/nano.yaml")
        )

    def command(self, number: int) -> list[str]:
        recipe = str(self.folder / "recipe.yaml")
        script = ["composer", "-n", "2", "tests/jumping_clock.py", "launch", recipe]
        return [*script, f"run_name={self.name}-{number}", *self.overrides]

    def run(self, number: int) -> Path:
        return self.folder / f"runs/{self.name}-{number}"

    def done(self, number: int) -> int:
        """How many updates, those that a rollback abandoned and those that were made twice with them."""
        return len(read_lines(RunFolder(self.run(number)).metrics))

    def check(self, number: int) -> None:
        assert_same_run(self.run(number), self.run(0))

    def remove(self, number: int) -> None:
        shutil.rmtree(self.run(number), ignore_errors=True)
        with suppress(FileNotFoundError):
            object_store.filesystem(STORE).rm(f"{STORE}/runs/{self.name}-{number}", recursive=True)


class Preparation:
    """A corpus of a source on the disk and one in the store, prepared by two workers into the store."""

    name = "data_prep"

    def __init__(self, machine: Machine):
        self.folder = machine.disk / self.name
        for seed, source in enumerate(("here", "there")):
            (self.folder / source).mkdir(parents=True)
            for part in range(2):
                write_jsonl(self.folder / source / f"{part}.jsonl", sentences(2 * seed + part, 40))
        object_store.upload(self.folder / "there", f"{STORE}/there")
        sources = {"here": f"{self.folder}/here", "there": f"{STORE}/there"}
        config = {
            "sources": {name: {"reader": "jsonl", "path": path} for name, path in sources.items()},
            "tokenizer": {"train": {"vocab_size": 320}},
            "row_lengths": [64, 256],
            "validation": 0.2,
            "deduplication": {"minhash": {"language": "en"}},
            "out": "out",
            "executor": {"local": {"workers": 2}},
        }
        (self.folder / "corpus.yaml").write_text(yaml.safe_dump(config))

    def command(self, number: int) -> list[str]:
        script = ["python", "tests/jumping_clock.py", "data_prep", str(self.folder / "corpus.yaml")]
        return [*script, f"out={self.out(number)}", f"work={self.work(number)}"]

    def out(self, number: int) -> str:
        return f"{STORE}/prepared/{number}"

    def work(self, number: int) -> Path:
        return self.folder / f"work-{number}"

    def done(self, number: int) -> int:
        """How many tasks of its stages."""
        return len(list(self.work(number).glob("logs/*/completions/*")))

    def content(self, number: int) -> dict[str, bytes]:
        folder = object_store.data_folder(self.out(number))
        return {name: folder.cat_file(name) for name in folder.find("")}

    def check(self, number: int) -> None:
        ours, undisturbed = self.content(number), self.content(0)
        assert ours.keys() == undisturbed.keys()
        for name, there in undisturbed.items():
            assert ours[name] == there, name
        assert not self.work(number).exists()

    def remove(self, number: int) -> None:
        shutil.rmtree(self.work(number), ignore_errors=True)
        with suppress(FileNotFoundError):
            object_store.filesystem(STORE).rm(self.out(number), recursive=True)


class Start:
    """A command, started."""

    numbers = 0

    def __init__(self, machine: Machine, command: list[str]):
        self.command, self.beside = command, machine.processes()  # left by a launcher that was killed alone
        Start.numbers += 1
        self.number = Start.numbers
        self.output = machine.folder / f"output/{self.number}"
        self.output.mkdir(parents=True)
        environment = {"CLOCK": str(machine.clock), "TMPDIR": str(machine.tmp)}
        environment |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        self.process = forked_composer.start(command, REPOSITORY, os.environ | environment, self.output)

    def wait(self, seconds: float) -> bool:
        """Whether it has ended by then."""
        self.process.join(seconds)
        return self.process.exitcode is not None

    def end(self) -> int:
        """Its status."""
        assert self.wait(HANGS), f"{self.command} hangs:\n{self.said()}"
        return self.process.exitcode

    def said(self) -> str:
        return "".join((self.output / stream).read_text(errors="replace") for stream in ("stdout", "stderr"))

    def processes(self, recursive: bool) -> list[psutil.Process]:
        """Its own and those that it has started."""
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.process.pid)
            return [process, *process.children(recursive)]
        return []


def kill_all(machine: Machine, *_: object) -> None:
    while processes := machine.processes():
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def kill_one(machine: Machine, start: Start, draw: random.Random) -> None:
    with suppress(psutil.NoSuchProcess, IndexError):
        draw.choice(start.processes(recursive=True)).kill()


def terminate(machine: Machine, start: Start, draw: random.Random) -> None:
    with suppress(psutil.NoSuchProcess, IndexError):
        draw.choice(start.processes(recursive=False)).terminate()


def cut_network(machine: Machine, start: Start, draw: random.Random) -> None:
    for state in ("down", "up"):
        subprocess.run(["ip", "link", "set", "lo", state], check=True)
        start.wait(draw.uniform(*OUTAGE) if state == "down" else 0)


def stop_store(machine: Machine, start: Start, draw: random.Random) -> None:
    machine.server.close()
    start.wait(draw.uniform(*OUTAGE))
    machine.serve()


def fill_disk(machine: Machine, start: Start, draw: random.Random) -> None:
    with open(machine.disk / "filling", "wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(1 << 14)):
            pass
    room = draw.choice([0, 1 << 14, 1 << 17])  # bytes
    os.truncate(file.name, max(0, os.path.getsize(file.name) - room))
    start.wait(draw.uniform(*OUTAGE))
    os.unlink(file.name)


def set_clock(machine: Machine, start: Start, draw: random.Random) -> None:
    jump = draw.choice([-1, 1]) * 10 ** draw.uniform(1, 8)  # ten seconds to three years
    coming = machine.clock.with_suffix(".coming")
    coming.write_text(str(float(machine.clock.read_text()) + jump))
    coming.replace(machine.clock)


def launch_twice(machine: Machine, start: Start, draw: random.Random) -> None:
    """One of both is refused, or finds nothing to do."""
    second = Start(machine, start.command)
    ends = [(one.end(), one.said()) for one in (second, start)]
    for status, said in ends:
        assert status == 0 or (status == REFUSED and "is at work there" in said), ends
    assert start.beside or any(status == 0 for status, _ in ends), ends


# What a start may end with beside 0: a fault may come too late, or be overcome. A rank that gets SIGTERM before it has
# a handler for it is a killed one. One that gets it while it exits ends with 143, as the launcher does, which ends
# with the status of the first rank that did not end well.
# Composer's launcher, when its SIGTERM ended a rank that was just starting or ending.
LAUNCHER_ENDED = {256 - signal.SIGTERM, 128 + signal.SIGTERM}
FAULTS = {
    kill_all: {-signal.SIGKILL},
    kill_one: {-signal.SIGKILL, 256 - signal.SIGKILL, FAILED, REFUSED, LAUNCHER_KILLED} | LAUNCHER_ENDED,
    terminate: {-signal.SIGTERM, FAILED, STOPPED} | LAUNCHER_ENDED,
    cut_network: {FAILED, REFUSED, LAUNCHER_KILLED} | LAUNCHER_ENDED,
    stop_store: {FAILED, REFUSED},
    fill_disk: {FAILED, REFUSED},
    set_clock: set(),
    launch_twice: {REFUSED},
}


class Supervisor:
    """Starts works, one at a time, and counts what happens to them."""

    def __init__(self, machine: Machine):
        self.machine = machine
        longer = "stages.only.duration=4096tok"
        self.works = [
            Training(machine, "modernbert", conftest.RECIPE, sources=("one", "two")),
            Training(machine, "roformer_v2", test_roformer_v2.RECIPE, longer, word_starts=True),
            Training(machine, "llama", test_llama.RECIPE, longer, causal=True),
            Preparation(machine),
        ]
        self.number = dict.fromkeys(self.works, 0)  # of the next one; 0 is undisturbed
        self.total = dict.fromkeys(self.works, 0)  # updates or tasks
        self.hit, self.ended = defaultdict(Counter), defaultdict(Counter)

    def undisturbed(self, work: Training | Preparation) -> None:
        start = Start(self.machine, work.command(0))
        while not start.wait(0.1):
            self.total[work] = max(self.total[work], work.done(0))
        assert self.finish(work, start, None) == 0

    def disturb(self, work: Training | Preparation, fault: Callable, draw: random.Random) -> None:
        """Start it, let the fault happen, and see how it ends.

        A third of the faults comes in the first three seconds, the others after a share of an undisturbed start's
        updates or tasks, if there are as many left.
        """
        number, share = self.number[work], draw.uniform(-0.5, 1)
        more = draw.uniform(0, 3 if share < 0 else 0.5)  # seconds
        start, first = Start(self.machine, work.command(number)), work.done(number)
        while not start.wait(0.1) and work.done(number) < first + share * self.total[work]:
            pass
        if start.wait(more):
            fault = None
        else:
            self.hit[fault.__name__][work.name] += 1
            print(f"{work.name}-{number}: {fault.__name__} at {work.done(number)} of {self.total[work]}", end=", ")
            fault(self.machine, start, draw)
        self.finish(work, start, fault)

    def finish(self, work: Training | Preparation, start: Start, fault: Callable | None) -> int:
        """Return the status of a start, after all that must hold at its end has been checked."""
        status, said = start.end(), start.said()
        self.ended[fault and fault.__name__][status] += 1
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        print(f"{work.name}-{self.number[work]}: start {start.number} ended with {status}", *errors, flush=True)
        without_worker = fault is terminate and isinstance(work, Preparation)
        refused = without_worker or (start.beside and "is at work there" in said)
        assert status in {0} | FAULTS.get(fault, set()) | ({REFUSED} if refused else set()), said
        of_launcher = status in {LAUNCHER_KILLED} | LAUNCHER_ENDED  # with or without an error of another rank
        assert bool(errors) == (status in (FAILED, REFUSED)) or of_launcher, said
        assert len(errors) <= (2 if fault is cut_network else 1), said  # two ranks that cannot agree on one reason
        assert "error: " not in errors, said
        if fault is not kill_one:
            assert said.count("Traceback") == said.count("SystemExit: 143"), said  # of the launcher, for SIGTERM
            until = time.monotonic() + GONE
            while ours := set(self.machine.processes()) - set(start.beside):
                assert time.monotonic() < until, ours
                time.sleep(0.1)
            assert status != 0 or start.beside or not self.machine.left(), self.machine.left()
        self.machine.tidy_up()
        if status == 0:
            if self.number[work] > 0:
                work.check(self.number[work])
                work.remove(self.number[work])
            self.number[work] += 1
        return status

    def report(self) -> None:
        for fault in FAULTS:
            hit, ended = (
                ", ".join(f"{what}: {count}" for what, count in sorted(counts[fault.__name__].items()))
                for counts in (self.hit, self.ended)
            )
            print(f"{fault.__name__:13} {hit or 'never drawn'}; ended with {ended}")
        print("equal to the undisturbed one:", ", ".join(f"{work.name}: {n - 1}" for work, n in self.number.items()))


def main(folder: Path, seed: int, minutes: float) -> None:
    logging.disable(logging.WARNING)  # the server's
    machine, generator = Machine(folder), random.Random(seed)
    with machine.server:
        supervisor = Supervisor(machine)
        for work in supervisor.works:
            supervisor.undisturbed(work)
        until = time.monotonic() + 60 * minutes
        while time.monotonic() < until:
            work, fault, draw = generator.choice(supervisor.works), generator.choice(list(FAULTS)), generator.random()
            supervisor.disturb(work, fault, random.Random(draw))
        kill_all(machine)
        for work in supervisor.works:
            while supervisor.finish(work, Start(machine, work.command(supervisor.number[work])), None) != 0:
                pass
        supervisor.report()
