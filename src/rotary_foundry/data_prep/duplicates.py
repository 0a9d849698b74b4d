"""Find the documents to leave out because they are duplicates.

Exact duplicates are found by the hash of the text, in numpy. Near-duplicates are found by datatrove's MinHash, whose
clusters group documents but do not say which one to keep. This module decides that, in the same way for both kinds: it
keeps the first held-out document of a group, so that no training text is in the held-out split. If a group has no
held-out document, it keeps the first one in reading order.
"""

from pathlib import Path

import numpy as np

from rotary_foundry.data_prep.work import Work, read_hashes

PARTS_A_TASK = 128
HASHES_AT_A_TIME = 2_000_000  # held in memory, 100 bytes each


def tasks_for(parts: int) -> int:
    """Return the number of tasks that find exact duplicates."""
    return 1 + parts // PARTS_A_TASK


def find_exact(work: Work, task: int, tasks: int) -> None:
    """Write the exact duplicates in a task's share of all hashes, one bucket at a time to bound memory."""
    documents = sum(sum(part["documents"].values()) for part in work.read_json("read"))
    buckets = tasks * -(-max(1, documents) // (tasks * HASHES_AT_A_TIME))
    for bucket in range(task, buckets, tasks):
        _find_in_bucket(work, bucket, buckets)


def _find_in_bucket(work: Work, bucket: int, buckets: int) -> None:
    high, low, file, row = [], [], [], []
    for number in work.files:
        start = 0
        for hashes in read_hashes(work.file(number)):
            rows = np.flatnonzero(hashes[:, 0] % np.uint64(buckets) == bucket)
            high.append(hashes[rows, 0])
            low.append(hashes[rows, 1])
            file.append(np.full(len(rows), number, dtype=np.uint32))
            row.append((start + rows).astype(np.uint32))
            start += len(hashes)
    if high:
        group = _groups(np.concatenate(high), np.concatenate(low))
        _write(work, f"exact-{bucket:05d}", group, np.concatenate(file), np.concatenate(row))


def find_near(work: Work, clusters: Path) -> None:
    """Write the near-duplicates in MinhashDedupCluster's output: one file of (row, cluster) for each document file."""
    group, file, row = [], [], []
    for path in sorted(clusters.glob("*.clusters")):
        pairs = np.fromfile(path, dtype="<u4").reshape(-1, 2)
        row.append(pairs[:, 0])
        group.append(pairs[:, 1])
        file.append(np.full(len(pairs), int(path.stem)))
    if group:
        _write(work, "near", np.concatenate(group), np.concatenate(file), np.concatenate(row))


def _groups(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Number the hashes, with one number for equal hashes (np.unique by rows is many times slower)."""
    order = np.lexsort((low, high))
    new = np.zeros(len(order), dtype=np.int64)
    new[1:] = (high[order][1:] != high[order][:-1]) | (low[order][1:] != low[order][:-1])
    group = np.empty_like(new)
    group[order] = new.cumsum()
    return group


def _write(work: Work, name: str, group: np.ndarray, file: np.ndarray, row: np.ndarray) -> None:
    """Write every group without the document to keep, as (file, row), uint32 `[duplicates, 2]`."""
    held_out = file >= sum(work.parts.values())
    order = np.lexsort((row, file, ~held_out, group))
    repeated = np.zeros(len(group), dtype=bool)
    repeated[1:] = group[order][1:] == group[order][:-1]
    file, row = file[order[repeated]], row[order[repeated]]
    by_file = np.lexsort((row, file))
    folder = work.folder / "duplicates"
    folder.mkdir(exist_ok=True)
    np.save(folder / f"{name}.npy", np.stack([file[by_file], row[by_file]], axis=1).astype(np.uint32))
