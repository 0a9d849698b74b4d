"""A Slurm cluster on this one machine: munged, a controller and two nodes, all in a folder of their own.

They are Debian's packages `slurm-wlm` and `munge`, without an accounting database and without systemd. What two real
nodes do not share is kept apart by a mount namespace each: /dev/shm and TMPDIR, where Streaming keeps what the ranks of
one node share. That needs root, and in a container the right to mount (CAP_SYS_ADMIN). Each node claims a GPU, which is
/dev/null: Slurm counts it, and torch sees none.

A job that is requeued starts again after `cred_expire` (15 seconds here; Slurm's default is 120).

Slurm tracks processes here without cgroups (`proctrack/linuxproc`): a signal to a step goes to all its processes,
loader workers too. With cgroups, as on most clusters, it goes to the first alone.
"""

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from .. import namespaces

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "unshare")
NODES = ("node1", "node2")
GRACE_SECONDS = 60
CONFIGURATION = """
ClusterName=one-machine
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=15
SchedulerParameters=sched_interval=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
MpiDefault=none
MailProg={true}
GresTypes=gpu
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=node1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=4000 Gres=gpu:1
NodeName=node2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=4000 Gres=gpu:1
PartitionName=spot Nodes=node1,node2 Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}
PartitionName=urgent Nodes=node1,node2 PriorityTier=2 PreemptMode=OFF
"""


def why_not() -> str | None:
    """What there is not here, that a cluster needs."""
    missing = [program for program in PROGRAMS if _program(program) is None]
    if missing:
        return f"no {', '.join(missing)} here: apt-get install slurm-wlm munge"
    return namespaces.why_not(["--mount"], "mount -t tmpfs none /dev/shm")  # which each of the two nodes has


@dataclass(frozen=True)
class Cluster:
    """A running cluster, as whoever submits jobs sees it."""

    environment: dict[str, str]
    output: Path  # the logs of jobs

    def ask(self, *command: str, **environment: str) -> str:
        """Run one of Slurm's commands and return what it prints."""
        done = subprocess.run(
            command, env=self.environment | environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout.strip()

    def submit(self, *arguments: str, **environment: str) -> str:
        """Submit a batch script with its arguments; the job's number."""
        return self.ask("sbatch", "--parsable", f"--output={self.output}/%j.log", *arguments, **environment)

    def job(self, job: str) -> dict[str, str]:
        """What Slurm says of a job: `JobState`, `ExitCode`, `Restarts`, …"""
        shown = self.ask("scontrol", "--oneliner", "show", "job", job)
        return dict(pair.split("=", 1) for pair in shown.split() if "=" in pair)

    def wait(self, job: str, *states: str, seconds: float = 300) -> dict[str, str]:
        """Wait until a job has one of these states, and return what Slurm says of it then."""
        last = time.monotonic() + seconds
        while (shown := self.job(job))["JobState"] not in states:
            assert time.monotonic() < last, f"{shown['JobState']}, not {states}:\n{self.log(job)}"
            time.sleep(0.3)
        return shown

    def wait_until_idle(self, seconds: float = 60) -> None:
        """Wait until no node has anything to do."""
        last = time.monotonic() + seconds
        show = ["sinfo", "--noheader", "--Node", "--partition=spot", "--format=%T"]
        while True:
            shown = subprocess.run(show, env=self.environment, capture_output=True, text=True, timeout=60)
            if shown.stdout.split() == ["idle"] * len(NODES):
                return
            assert time.monotonic() < last, f"not idle: {shown.stdout}{shown.stderr}; see the logs in {self.output}/.."
            time.sleep(0.3)

    def log(self, job: str) -> str:
        path = self.output / f"{job}.log"
        return path.read_text() if path.exists() else ""


@contextmanager
def one_machine_cluster(folder: Path) -> Iterator[Cluster]:
    """Start a cluster in an empty folder; stop it, and the jobs that are left on it, at the end."""
    for name in ("state", "output", "tmp", *NODES):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
    (folder / "cgroup.conf").write_text("")
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(
            folder=folder, user=getpass.getuser(), ports=_free_ports(3), true=_program("true"), grace=GRACE_SECONDS
        )
    )
    own = {"SLURM_CONF": str(configuration), "TMPDIR": str(folder / "tmp")}
    others = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))}
    cluster = Cluster(others | own, folder / "output")
    private = "mount -t tmpfs none /dev/shm && mount -t tmpfs none $TMPDIR && exec $0 $@"
    with ExitStack() as stack:

        def start(name: str, *command: str) -> None:
            stack.enter_context(_daemon([_program(command[0]), *command[1:]], folder / f"{name}.log", cluster))

        # --force: it wants a socket that all may reach, and this folder is our own
        files = ("socket", "key-file", "pid-file", "log-file", "seed-file")
        paths = [f"--{file}={folder}/munge.{file.removesuffix('-file')}" for file in files]
        start("munged", "munged", "--foreground", "--force", *paths)
        start("slurmctld", "slurmctld", "-D")
        for node in NODES:
            start(node, "unshare", "--mount", "bash", "-c", private, _program("slurmd"), "-D", "-N", node)
        cluster.wait_until_idle()
        try:
            yield cluster
        finally:
            cluster.ask("scancel", f"--user={getpass.getuser()}")
            cluster.wait_until_idle()


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


@contextmanager
def _daemon(command: list[str], log: Path, cluster: Cluster) -> Iterator[None]:
    with log.open("w") as output:
        process = subprocess.Popen(command, env=cluster.environment, stdout=output, stderr=output)
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
