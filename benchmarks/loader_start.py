"""What a loader's start does for the order of its rows, with and without the file that the one before has left.

An epoch of 2^24 rows in shards of 2^15, of which two loaders after each other deal 2^20 rows each, every one in a
process that has just been forked, as a loader's worker is. Memory is the peak above what the process began with.
"""

import multiprocessing
import time
from pathlib import Path

import numpy as np

from rotary_foundry.data.kept_order import KeptOrder
from rotary_foundry.data.order import CanonicalOrder, Draw

ROWS, SHARD, DEALT, BATCH = 1 << 24, 1 << 15, 1 << 20, 1 << 12


def costs() -> list[tuple[str, float, float]]:
    """(what is done, seconds, bytes a row of the epoch)"""
    kept = KeptOrder(["text"], [np.full(ROWS // SHARD, SHARD)], "py1e", 1 << 18)
    return [("computed, and kept", *_start(kept, 0)), ("read from the file", *_start(kept, 1))]


def _start(order: CanonicalOrder, loader: int) -> tuple[float, float]:
    """What a loader's stretch costs in a new process: seconds, and bytes a row of the epoch."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    worker = context.Process(target=_deal, args=(order, loader, theirs))
    worker.start()
    theirs.close()
    found = ours.recv()
    worker.join()
    return found


def _deal(order: CanonicalOrder, loader: int, answer) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    before, began = _peak(), time.perf_counter()
    order.updates(Draw(17, 0, None, loader * DEALT, DEALT // BATCH, BATCH))
    answer.send((time.perf_counter() - began, (_peak() - before) / ROWS))


def _peak() -> int:
    """The most bytes that this process held since it was told to count anew."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
