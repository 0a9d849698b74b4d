"""Which documents to leave out, because the corpus has them elsewhere.

Exact duplicates by the hash of the text, in numpy; near-duplicates by datatrove's MinHash, whose clusters say which
documents belong together and nothing of which to keep. That is decided here, for both alike: of documents that belong
together the first held-out one stays, so that nothing that is trained on stands in the held-out split, and where none
is held out, the first in reading order.
"""

from pathlib import Path

import numpy as np

from encoder_foundry.preparation.work import Work, read_hashes

TASKS_A_BUCKET = 128  # of parts of 128 MB each, whose hashes a bucket holds in memory


def buckets(tasks: int) -> int:
    """How many tasks to find exact duplicates with, each for a share of all hashes."""
    return 1 + tasks // TASKS_A_BUCKET


def find_exact(work: Work, bucket: int, of: int) -> None:
    """Write the exact duplicates among the hashes of one bucket."""
    high, low, file, row = [], [], [], []
    for number, path in enumerate(work.files):
        hashes = read_hashes(path)
        rows = np.flatnonzero(hashes[:, 0] % np.uint64(of) == bucket)
        high.append(hashes[rows, 0])
        low.append(hashes[rows, 1])
        file.append(np.full(len(rows), number))
        row.append(rows)
    _write(
        work,
        f"exact-{bucket:05d}",
        _groups(np.concatenate(high), np.concatenate(low)),
        np.concatenate(file),
        np.concatenate(row),
    )


def find_near(work: Work, clusters: Path) -> None:
    """Write the near-duplicates in the clusters of MinhashDedupCluster, one file of (row, cluster) a document file."""
    group, file, row = [], [], []
    for path in sorted(clusters.glob("*.clusters")):
        pairs = np.fromfile(path, dtype="<u4").reshape(-1, 2)
        row.append(pairs[:, 0])
        group.append(pairs[:, 1])
        file.append(np.full(len(pairs), int(path.stem)))
    if group:
        _write(work, "near", np.concatenate(group), np.concatenate(file), np.concatenate(row))


def _groups(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """A number for each hash, the same for equal ones (np.unique by rows is many times slower)."""
    order = np.lexsort((low, high))
    new = np.zeros(len(order), dtype=np.int64)
    new[1:] = (high[order][1:] != high[order][:-1]) | (low[order][1:] != low[order][:-1])
    group = np.empty_like(new)
    group[order] = new.cumsum()
    return group


def _write(work: Work, name: str, group: np.ndarray, file: np.ndarray, row: np.ndarray) -> None:
    """Write all but the one to keep of every group, as (file, row), uint32 `[duplicates, 2]`."""
    held_out = file >= len(work.tasks)
    order = np.lexsort((row, file, ~held_out, group))
    repeated = np.zeros(len(group), dtype=bool)
    repeated[1:] = group[order][1:] == group[order][:-1]
    leave_out = order[repeated]
    folder = work.folder / "duplicates"
    folder.mkdir(exist_ok=True)
    np.save(folder / f"{name}.npy", np.stack([file[leave_out], row[leave_out]], axis=1).astype(np.uint32))
