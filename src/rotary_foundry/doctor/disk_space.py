"""Check that a machine has space for the files of a recipe: in /dev/shm, for the runs, for the shards.

Loader workers put batches into /dev/shm until the Trainer takes them. torch's loaders make two per worker ahead, and
the batch in training stays until it is released. A rank's batch is its share of an update's rows. On GPUs an evaluation
has workers of its own in addition. Without workers, the ranks make batches themselves. In a container, /dev/shm has
64 MB unless configured otherwise. If there is no room, a loader dies of a bus error, perhaps hours into a run, when the
ramp reaches a batch that is too large. NCCL also has its rings between the GPUs of one machine there; NVIDIA's guide
recommends 1 GB for them ("Troubleshooting", shared memory).

Disks need room only for files that do not exist yet: further checkpoints, and shards not yet decompressed.
"""

import fnmatch
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from rotary_foundry.data.corpus import shard_folders
from rotary_foundry.data.rows import FRAME
from rotary_foundry.data.shard_index import read_index
from rotary_foundry.doctor.finding import Finding, bad, good
from rotary_foundry.recipe import Plan, Recipe
from rotary_foundry.recipe.cost import cost
from rotary_foundry.recipe.plan import Segment
from rotary_foundry.runs.run_folder import RunFolder
from rotary_foundry.utils.wording import size

SHM = Path("/dev/shm")
NCCL = 10**9
AHEAD = 2  # batches per worker: the DataLoader's prefetch_factor
# input_ids and labels are int64; cu_seqlens are int32, at most one per FRAME.slots tokens
BYTES_A_TOKEN = 8 + 8 + 4 / max(1, FRAME.slots)
BYTES_A_LABEL, BYTES_OF_WEIGHTS = 8, 4 + 1  # in `predicted`; `weights` and `scored` of a token


def loaders_need(recipe: Recipe, plan: Plan, nodes: int) -> int:
    """Return the most bytes of /dev/shm that the loaders of one of `nodes` nodes take."""
    workers = recipe.data.num_workers
    most = max(_batch_bytes(recipe, segment) for segment in (*plan.segments, *plan.abandoned))
    return round((AHEAD * workers + 1) * most / nodes) if workers else 0


def evaluation_needs(recipe: Recipe, plan: Plan, ranks: int) -> int:
    """Return the bytes of /dev/shm that evaluations of `ranks` ranks take on GPUs, besides the training loaders'."""
    workers = recipe.data.held_out_workers
    rows = {name: stage.device_train_microbatch_size for name, stage in recipe.stages.items()}  # per batch
    most = max(_batch_bytes(recipe, segment) / segment.rows * rows[segment.stage] for segment in plan.segments)
    return round((AHEAD * workers + 1) * most * ranks) if workers else 0


def _batch_bytes(recipe: Recipe, segment: Segment) -> float:
    """Return the bytes of an update's batches on all ranks together."""
    objective = recipe.objective_of(segment.stage)
    labels = objective.predicted_share(segment.knobs_at(segment.start_token))
    a_token = BYTES_A_TOKEN + BYTES_A_LABEL * labels + BYTES_OF_WEIGHTS * objective.weighted
    return segment.tokens_per_update * a_token


def check_shm(recipe: Recipe, plan: Plan, nodes: int, ranks: int, shm: Path = SHM) -> Iterator[Finding]:
    """Check that /dev/shm, if it exists, has room for one of `nodes` nodes, with `ranks` ranks."""
    if not shm.is_dir():
        return
    import torch

    loaders, nccl = loaders_need(recipe, plan, nodes), 0
    if torch.cuda.is_available():
        loaders += evaluation_needs(recipe, plan, ranks)
        nccl = NCCL if ranks > 1 else 0
    free = shutil.disk_usage(shm).free
    subject, parts = str(shm), f"{size(loaders)} for the loaders" + (f" and {size(nccl)} for NCCL" if nccl else "")
    if free < loaders + nccl:
        gib = -(-(loaders + nccl) * 5 // 4 // 2**30)  # a quarter more, in whole GiB
        yield bad(
            subject,
            f"{size(free)} free; needed: {parts}",
            f"docker run --shm-size={gib}g (Kubernetes: an emptyDir of medium Memory; as root: "
            f"mount -o remount,size={gib}g {shm}), or set a smaller data.num_workers",
        )
    else:
        yield good(subject, f"{size(free)} free; needed: {parts}")


def check_runs_disk(recipe: Recipe, plan: Plan) -> Iterator[Finding]:
    """Check that all kept checkpoints fit, and one more while it is written."""
    folder = RunFolder.of(recipe)
    costs = cost(recipe, plan)
    if costs.save_seconds is None:
        count = min(costs.checkpoints_kept + 1, costs.checkpoints_written)
    else:  # if all are kept, the checkpoints due at given tokens are a lower bound
        count = (costs.checkpoints_kept or costs.checkpoints_written) + 1
    here = _bytes(folder.path, "*.distcp")
    needed = max(0, count * costs.checkpoint_bytes - here)
    there = f", {size(here)} of them here already" if here else ""
    kept = f"{count} checkpoints of {size(costs.checkpoint_bytes)}{there}"
    yield from _room("runs", folder.path, needed, kept, "set save_num_checkpoints_to_keep=…, or another runs_folder")


def check_data_disk(recipe: Recipe, indexes: Path) -> Iterator[Finding]:
    """Check that `data.local` has room for shards that will be fetched or decompressed.

    Args:
        recipe: the recipe that uses the shards.
        indexes: the folder with their index files: `data.local`, or the one to which `data.remote`'s were fetched.
    """
    local, limited, needed = Path(recipe.data.local), recipe.data.remote and recipe.data.cache_limit, 0
    for folder, _ in shard_folders(recipe):
        if limited and folder.endswith("/train"):
            continue
        raw = read_index(indexes / folder / "index.json").raw
        for name, count in zip(raw.names, raw.bytes.tolist(), strict=True):
            if not (local / folder / name.decode()).exists():
                needed += count
    what = "shards that are yet to be fetched or decompressed"
    if limited:
        from streaming.base.util import bytes_to_int

        lengths = {stage.row_length for stage in recipe.stages.values()}
        here = sum(_bytes(train, "shard.*") for train in local.glob("*/*/train"))
        needed += max(0, bytes_to_int(recipe.data.cache_limit) * len(lengths) - here)
        what = f"data.cache_limit for each of {len(lengths)} row lengths, and the held-out shards"
    yield from _room("data", local, needed, what, "a larger disk for data.local, or data.remote with data.cache_limit")


def _bytes(folder: Path, names: str) -> int:
    """Return the bytes of files named like `names` in and below a folder; skip those that a run removes meanwhile."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in fnmatch.filter(files, names):
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(place, name)).st_size
    return total


def _room(subject: str, path: Path, needed: int, what: str, remedy: str) -> Iterator[Finding]:
    place = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    said = f"{path}: {size(free)} free; needed: {size(needed)} ({what})"
    if not place.is_dir() or not os.access(place, os.W_OK):
        yield bad(subject, f"{place} cannot be written to", "change its owner or permissions, or use another folder")
    elif free < needed:
        yield bad(subject, said, remedy)
    else:
        yield good(subject, said)
