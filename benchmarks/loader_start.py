"""Measure a loader's start on a corpus of 1.7e9 rows: seconds, and memory above that with a tiny corpus.

The corpus is synthetic: 52,000 shards of 2^15 rows for each of two row lengths, in three sources. The index lists every
shard under its own name, and all names lead to one file of 2^15 rows of one token, so that rows can be read. The
tiny corpus has that file alone, once per source.

Every rank is a process with a loader worker, as in a run. It reads the indexes of both lengths, as a run does once
when it checks its corpus. Then for each length it makes a first loader, and another one that starts in the middle of an
epoch. A start ends when the first batch is there. The ranks start together, and the slowest counts.
"""

import json
import multiprocessing
import os
import socket
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from functools import partial
from itertools import islice, product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from streaming import MDSWriter
from torch import distributed as dist
from torch.utils.data import DataLoader

from rotary_foundry.data.order import Draw
from rotary_foundry.data.rows import SHARD_HASH, Row, columns, encode_row
from rotary_foundry.data.shard_index import read_index
from rotary_foundry.data.stream import TrainingStream

SHARDS = {"web": 40_000, "code": 9_000, "papers": 3_000}
LENGTHS = (1024, 8192)
ROWS = 1 << 15  # per shard
MIXTURE = {"web": 0.6, "code": 0.2, "papers": 0.2}
ROWS_A_RANK, UPDATES = 128, 1_000_000
IN_A_FOLDER = 100
STEPS = ("the indexes", "1024, first", "1024, next", "8192, first", "8192, next")


def starts() -> list[tuple[int, bool, list[tuple[float, float]], float, float]]:
    """Return (ranks, whether with a mixture, (seconds, CPU seconds) of each step, MB of a rank, MB of its worker)."""
    found = []
    with TemporaryDirectory() as folder:
        small, large = Path(folder, "small"), Path(folder, "large")
        shard = _make_shard(Path(folder, "shard"))
        for root, shards in ((small, dict.fromkeys(SHARDS, 1)), (large, SHARDS)):
            _make_indexes(root, shards, *shard)
        for ranks in (1, 8):
            for mixture in (None, MIXTURE):
                before, after = (_on_ranks(root, ranks, mixture) for root in (small, large))
                of_steps = zip(*(times for times, _, _ in after), strict=True)
                steps = [tuple(map(max, zip(*of_ranks, strict=True))) for of_ranks in of_steps]
                grown = [max(rank[part] for rank in after) - min(rank[part] for rank in before) for part in (1, 2)]
                found.append((ranks, mixture is not None, steps, *(bytes_ / 1e6 for bytes_ in grown)))
                print(*found[-1], flush=True)
    return found


def _make_shard(folder: Path) -> tuple[Path, dict]:
    """Write the one shard under many names; return its folder and its index entry."""
    dtype, one = np.dtype(np.uint16), np.ones(1, np.uint32)
    with MDSWriter(out=str(folder), columns=columns(dtype), hashes=[SHARD_HASH], size_limit=None) as out:
        for _ in range(ROWS):
            out.write(encode_row(Row(one, one, one), dtype))
    for number in range(1, IN_A_FOLDER):
        os.link(folder / "shard.00000.mds", folder / f"shard.{number:05}.mds")
    (entry,) = json.loads((folder / "index.json").read_text())["shards"]
    return folder, entry


def _make_indexes(root: Path, shards: dict[str, int], shard: Path, entry: dict) -> None:
    for source, length in product(shards, LENGTHS):
        folder = root / source / str(length) / "train"
        folder.mkdir(parents=True)
        entries = []
        for number in range(shards[source]):
            part, name = divmod(number, IN_A_FOLDER)
            if name == 0:
                (folder / f"{part:05}").symlink_to(shard)
            raw = entry["raw_data"] | {"basename": f"{part:05}/shard.{name:05}.mds"}
            zipped = raw | {"basename": f"{raw['basename']}.zstd"}
            entries.append(entry | {"raw_data": raw, "zip_data": zipped, "compression": "zstd"})
        (folder / "index.json").write_text(json.dumps({"version": 2, "shards": entries}))


def _on_ranks(root: Path, ranks: int, mixture: dict | None) -> list[tuple[list[tuple[float, float]], int, int]]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with ProcessPoolExecutor(ranks, mp_context=multiprocessing.get_context("fork")) as pool:
        return list(pool.map(partial(_rank, root, ranks, port, mixture), range(ranks)))


def _rank(
    root: Path, ranks: int, port: int, mixture: dict | None, rank: int
) -> tuple[list[tuple[float, float]], int, int]:
    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{ranks}", "LOCAL_WORLD_SIZE": f"{ranks}"}
    os.environ |= {"NODE_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": f"{port}"}
    dist.init_process_group("gloo", timeout=timedelta(minutes=5))
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    streams, times, peaks = {}, [], [0]

    def indexes() -> float:
        for source, length in product(SHARDS, LENGTHS):
            read_index(root / source / str(length) / "train/index.json")
        return 0.0

    def load(length: int, start_row: int) -> float:
        draw = Draw(17, 0, mixture, start_row, UPDATES, ranks * ROWS_A_RANK)
        if length not in streams:
            streams[length] = TrainingStream(list(SHARDS), root, None, length, 1 << 18, draw)
        streams[length].draw = draw
        loader = DataLoader(streams[length], ROWS_A_RANK, num_workers=1, collate_fn=_of_worker)
        ((peak, cpu),) = islice(loader, 1)
        peaks.append(peak)
        return cpu

    for step in (indexes, *(partial(load, length, row) for length in LENGTHS for row in (0, 900_000_123))):
        dist.barrier()
        began, cpu = time.perf_counter(), time.process_time()
        of_worker = step()
        times.append((time.perf_counter() - began, time.process_time() - cpu + of_worker))
    dist.barrier()
    dist.destroy_process_group()
    return times, _peak(), max(peaks)


def _of_worker(samples: list) -> tuple[int, float]:
    return _peak(), time.process_time()


def _peak() -> int:
    """Return the peak bytes of this process, shared memory included."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
