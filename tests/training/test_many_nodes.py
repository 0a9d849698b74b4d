"""A run over two hosts, made of what a host is to it: network namespaces, each with an address, a /dev/shm, a cache."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from rotary_foundry.runs.run_folder import RunFolder

from ..namespaces import why_not
from .conftest import REPOSITORY, Tiny
from .runs import assert_same_run

ADDRESSES = ["10.213.77.1", "10.213.77.2"]
TIMEOUT = 20  # seconds: the recipe's dist_timeout
SHARED_NOTHING = 'mount -t tmpfs tmpfs /dev/shm && mount -t tmpfs tmpfs "$CACHE" && mkdir "$TMPDIR" && exec "$@"'

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class TwoHosts:
    """Two network namespaces, joined by a cable."""

    def __init__(self) -> None:
        self.names = [f"foundry-{os.getpid()}-{number}" for number in range(2)]
        for name in self.names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        first, second = self.names
        ip("-n", first, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", second)
        for name, address in zip(self.names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
        self.plug_in()

    def plug_in(self) -> None:
        for name in self.names:
            ip("-n", name, "link", "set", "cable", "up")

    def cut(self) -> None:
        ip("-n", self.names[1], "link", "set", "cable", "down")

    def remove(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)

    @contextmanager
    def start(self, tiny: Tiny, cache: Path, *overrides: str) -> Iterator[list[subprocess.Popen]]:
        """The same command on both, two ranks each."""
        nodes = []
        for number, name in enumerate(self.names):
            composer = [str(Path(sys.executable).parent / "composer"), "-n", "2", "--world_size", "4"]
            where = ["--node_rank", str(number), "--master_addr", ADDRESSES[0], "--master_port", "29400"]
            host = ["ip", "netns", "exec", name, "unshare", "--mount", "sh", "-c", SHARED_NOTHING, "sh"]
            environment = {"CACHE": str(cache), "TMPDIR": str(cache / "tmp"), "GLOO_SOCKET_IFNAME": "cable"}
            nodes.append(
                subprocess.Popen(
                    [*host, *composer, *where, "launch", str(tiny.recipe), *overrides],
                    cwd=REPOSITORY,
                    env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    start_new_session=True,
                )
            )
        try:
            yield nodes
        finally:
            for node in nodes:
                with suppress(ProcessLookupError):
                    os.killpg(node.pid, signal.SIGKILL)


@pytest.fixture
def hosts() -> Iterator[TwoHosts]:
    if reason := why_not(["--net", "--mount"], "ip link set lo up && mount -t tmpfs tmpfs /dev/shm"):
        pytest.skip(reason)
    hosts = TwoHosts()
    yield hosts
    hosts.remove()


def test_when_the_link_is_cut_both_sides_end_in_time_and_the_same_command_goes_on_exactly(tiny, hosts, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    data = [f"data.remote={tiny.folder}/data", f"data.local={cache}/data"]
    same = [*data, "stages.pretrain.device_train_microbatch_size=1", f"dist_timeout={TIMEOUT}"]
    run = tiny.folder / "runs/cut"
    with hosts.start(tiny, cache, "run_name=cut", *same) as nodes:
        while not RunFolder(run).metrics.exists() or len(RunFolder(run).metrics.read_text().splitlines()) < 5:
            assert all(node.poll() is None for node in nodes), [node.communicate() for node in nodes]
            time.sleep(0.1)
        hosts.cut()
        since = time.monotonic()
        said = [node.communicate(timeout=10 * TIMEOUT)[1] for node in nodes]
        assert time.monotonic() - since < 3 * TIMEOUT  # the group's, the store's, and the launcher's ten seconds
        assert all(node.returncode not in (0, None) for node in nodes)
        print(*said, sep="\n=====\n")
    hosts.plug_in()
    for name in ("cut", "whole"):
        with hosts.start(tiny, cache, f"run_name={name}", *same) as nodes:
            said = [node.communicate(timeout=280) for node in nodes]
            assert [node.returncode for node in nodes] == [0, 0], said
        if name == "cut":
            assert "going on from ba" in said[0][0]
    assert_same_run(run, tiny.folder / "runs/whole")
