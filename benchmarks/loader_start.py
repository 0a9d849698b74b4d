"""`python benchmarks/loader_start.py`: what a loader's start does for the order of its rows, with and without a file.

An epoch of 2^24 rows in shards of 2^15, of which three loaders after each other deal 2^20 rows each, every one in a
process that has just been forked, as a loader's worker is. Memory is the peak above what the process began with.
"""

import os
import time
from pathlib import Path

import numpy as np

from encoder_foundry.data.kept_order import KeptOrder
from encoder_foundry.data.order import CanonicalOrder, Draw

ROWS, SHARD, DEALT, BATCH = 1 << 24, 1 << 15, 1 << 20, 1 << 12


def peak() -> int:
    """The most bytes that this process held since it was told to count anew."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def start(order: CanonicalOrder, loader: int) -> None:
    """Take a loader's stretch in a new process, and print what it cost."""
    if not (child := os.fork()):
        Path("/proc/self/clear_refs").write_text("5")
        before, began = peak(), time.perf_counter()
        order.updates(Draw(17, 0, None, loader * DEALT, DEALT // BATCH, BATCH))
        seconds = time.perf_counter() - began
        cost = f"{seconds:.3f} s, {(peak() - before) / ROWS:.1f} bytes a row of the epoch"
        print(f"{type(order).__name__}, loader {loader}: {cost}", flush=True)
        os._exit(0)
    os.waitpid(child, 0)


if __name__ == "__main__":
    for kind in (CanonicalOrder, KeptOrder):
        order = kind(["text"], [np.full(ROWS // SHARD, SHARD)], "py1e", 1 << 18)
        for loader in range(3):
            start(order, loader)
