"""What a loader's start takes of a corpus of 1.7e9 rows: seconds, and memory above the start of an empty one.

The corpus is made: 52,000 shards of 2^15 rows for each of two row lengths, in three sources. The index lists every
shard under a name of its own, and all names lead to one file of 2^15 rows of one token, so that rows can be read. The
empty one has that file alone, once a source.

Every rank is a new process with a loader worker, as in a run. It reads the indexes of both lengths, as a run does once
when it checks its corpus; makes the first loader of each length; and another one from the middle of an epoch on. A
start is over when the first batch is there. The ranks start together, and the slowest counts.
"""

import json
import multiprocessing
import os
import socket
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from functools import partial
from itertools import islice
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
EMPTY = dict.fromkeys(SHARDS, 1)
LENGTHS = (1024, 8192)
ROWS = 1 << 15  # a shard
MIXTURE = {"web": 0.6, "code": 0.2, "papers": 0.2}
ROWS_A_RANK, UPDATES = 128, 1_000_000
IN_A_FOLDER = 100
STEPS = ("the indexes", "1024, first", "1024, next", "8192, first", "8192, next")


def starts(ranks: int, mixed: bool) -> tuple[dict[str, float], float, float]:
    """Seconds of each step, and the MB that a rank and its worker take at most, each above those of an empty corpus."""
    with TemporaryDirectory() as folder:
        small, large = Path(folder, "small"), Path(folder, "large")
        _make(small, EMPTY)
        _make(large, SHARDS)
        before, after = (_on_ranks(place, ranks, MIXTURE if mixed else None) for place in (small, large))
    seconds = {step: max(rank[0][number] for rank in after) for number, step in enumerate(STEPS)}
    of_rank, of_worker = (max(rank[part] for rank in after) - min(rank[part] for rank in before) for part in (1, 2))
    return seconds, of_rank / 1e6, of_worker / 1e6


def _make(root: Path, shards: dict[str, int]) -> None:
    dtype, one = np.dtype(np.uint16), np.ones(1, np.uint32)
    with MDSWriter(out=str(root / "shard"), columns=columns(dtype), hashes=[SHARD_HASH], size_limit=None) as out:
        for _ in range(ROWS):
            out.write(encode_row(Row(one, one, one), dtype))
    (entry,) = json.loads((root / "shard/index.json").read_text())["shards"]
    for number in range(IN_A_FOLDER):
        os.link(root / "shard/shard.00000.mds", root / f"shard/shard.{number:05}.mds") if number else None
    for source, count in shards.items():
        for length in LENGTHS:
            folder = root / source / str(length) / "train"
            folder.mkdir(parents=True)
            entries = []
            for number in range(count):
                part, name = divmod(number, IN_A_FOLDER)
                if name == 0:
                    (folder / f"{part:05}").symlink_to(root / "shard")
                raw = entry["raw_data"] | {"basename": f"{part:05}/shard.{name:05}.mds"}
                zipped = raw | {"basename": f"{raw['basename']}.zstd"}
                entries.append(entry | {"raw_data": raw, "zip_data": zipped, "compression": "zstd"})
            (folder / "index.json").write_text(json.dumps({"version": 2, "shards": entries}))


def _on_ranks(root: Path, ranks: int, mixture: dict | None) -> list[tuple[list[float], int, int]]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with ProcessPoolExecutor(ranks, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(partial(_rank, root, ranks, port, mixture), range(ranks)))


def _rank(root: Path, ranks: int, port: int, mixture: dict | None, rank: int) -> tuple[list[float], int, int]:
    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{ranks}", "LOCAL_WORLD_SIZE": f"{ranks}"}
    os.environ |= {"NODE_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": f"{port}"}
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    seconds, peaks = [], []

    def step(do) -> None:
        dist.barrier()
        began = time.perf_counter()
        do()
        seconds.append(time.perf_counter() - began)

    def indexes() -> None:
        for source in SHARDS:
            for length in LENGTHS:
                read_index(root / source / str(length) / "train/index.json")

    def load(rows: TrainingStream) -> None:
        loader = DataLoader(
            rows,
            batch_size=rows.batch_size,
            num_workers=1,
            collate_fn=_peak_of_worker,
            multiprocessing_context="fork",  # torch's own choice, but in a process that was spawned
        )
        peaks.extend(islice(loader, 1))

    step(indexes)
    for length in LENGTHS:
        batch = ranks * ROWS_A_RANK
        streams = []

        def first(length: int = length, streams: list = streams, batch: int = batch) -> None:
            draw = Draw(17, 0, mixture, 0, UPDATES, batch)
            streams.append(TrainingStream(list(SHARDS), root, None, length, 1 << 18, draw))
            load(streams[0])

        def another(streams: list = streams, batch: int = batch) -> None:
            streams[0].draw = Draw(17, 0, mixture, 900_000_123, UPDATES, batch)
            load(streams[0])

        step(first)
        step(another)
    dist.barrier()
    dist.destroy_process_group()
    return seconds, _peak(), max(peaks)


def _peak_of_worker(samples: list) -> int:
    return _peak()


def _peak() -> int:
    """The most bytes that this process held, with what it shares with others."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
