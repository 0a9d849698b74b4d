"""Test all-reduce and reduce-scatter over all ranks: their results and their speed.

FSDP2 uses these two collectives for gradients, over NCCL on GPUs and gloo on CPU. The values are small integers, which
float32 sums exactly in any order, so results are compared for equality. The bandwidth is the "bus bandwidth" of
nccl-tests, the rate of a link, independent of the number of ranks. It is printed but not judged, because the doctor
does not know the expected speed of the network.

A collective does not fail if a peer is missing or cannot be reached over NCCL's network; it waits. So a thread watches
it. If the collective does not return in time, the thread prints what was found so far and ends the process.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from composer.utils import dist
from torch import Tensor, distributed

from rotary_foundry.doctor.finding import Finding, bad, good

Told = TypeVar("Told")
BYTES = 2**26  # of a message: about the gradients of a layer of the large model
REPEATS = 5
MEETING_SECONDS = 300.0  # time limit for all ranks to join
DEADLINE_SECONDS = 60.0  # for all collectives together; the first takes NCCL some seconds
REMEDY = (
    "give every node the same --world_size, --master_addr and --master_port, its own --node_rank, and access to that "
    "port; NCCL_SOCKET_IFNAME selects the network, and NCCL_DEBUG=INFO logs what NCCL does"
)


def meet() -> None:
    """Join the process group of all ranks.

    Raises:
        RuntimeError, ValueError: the ranks cannot connect.
    """
    dist.initialize_dist("gpu" if torch.cuda.is_available() else "cpu", timeout=MEETING_SECONDS)


def gather(told: Told) -> list[Told]:
    """Return the values of all ranks, in rank order."""
    return dist.all_gather_object(told)


def leave() -> None:
    """Leave the process group, after a short wait.

    gloo's thread needs Python's lock to release the last message, and torch 2.7.0 holds the lock while it waits for
    that thread.
    """
    time.sleep(0.2)
    distributed.destroy_process_group()


def try_out() -> Finding:
    """Test both collectives. Call it on every rank.

    Raises:
        RuntimeError: a peer or the network failed.
    """
    world, device = distributed.get_world_size(), "cuda" if torch.cuda.is_available() else "cpu"
    group = f"{distributed.get_backend()} over {world} ranks"
    wrong, speeds = _measure(world, device)
    if wrong:
        return bad(
            "collectives",
            f"{group}: wrong sums in {' and '.join(wrong)}",
            "the network, a GPU or the library is defective; to find it, leave out half of the nodes, then the others",
        )
    rates = ", ".join(f"{name} {rate / 1e9:.3g} GB/s" for name, rate in speeds.items())
    return good("collectives", f"{group}: sums are right; bus bandwidth {rates}")


def _measure(world: int, device: str) -> tuple[list[str], dict[str, float]]:
    """Return the collectives with wrong sums on any rank, and the bytes per second of each on the slowest rank."""
    rank = distributed.get_rank()
    length = BYTES // 4 // world * world
    one_to_seven = torch.arange(length, device=device) % 7 + 1
    ours = (one_to_seven * (rank + 1)).float()
    total = (one_to_seven * (world * (world + 1) // 2)).float()
    own = total.chunk(world)[rank]

    def all_reduce(whole: Tensor) -> Tensor:
        distributed.all_reduce(whole)
        return whole

    def reduce_scatter(whole: Tensor) -> Tensor:
        part = whole.new_empty(length // world)
        distributed.reduce_scatter_tensor(part, whole)
        return part

    wrong, speeds = [], {}
    for name, collective, expected, passes in (
        ("all-reduce", all_reduce, total, 2),
        ("reduce-scatter", reduce_scatter, own, 1),
    ):
        right = torch.equal(collective(ours.clone()), expected)  # the first call makes the connections and is not timed
        outcomes = gather((right, min(_seconds(collective, ours.clone()) for _ in range(REPEATS))))
        if not all(right for right, _ in outcomes):
            wrong.append(name)
        slowest = max(seconds for _, seconds in outcomes)
        speeds[name] = passes * (world - 1) / world * length * 4 / slowest
    return wrong, speeds


def _seconds(collective: Callable[[Tensor], Tensor], whole: Tensor) -> float:
    distributed.barrier()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    collective(whole)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


@contextmanager
def deadline(on_late: Callable[[str], object]) -> Iterator[None]:
    """If the block does not end in time, call `on_late` with the reason and end the process with status 1."""

    def end() -> None:
        on_late(f"{distributed.get_world_size()} ranks met, but not all of them returned after {DEADLINE_SECONDS} s")
        os._exit(1)

    timer = threading.Timer(DEADLINE_SECONDS, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
