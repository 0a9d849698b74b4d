"""Check that a machine has enough memory for a recipe's loaders.

Each rank, and each of its loader workers, holds an entry of every shard of the recipe's sources, in one stream per row
length. The bytes per shard are from benchmarks/results.md ("The start of a loader"), for 104,000 shards. Batches in
/dev/shm are memory as well. Weights, activations and the processes themselves are not counted, so the sum is a lower
bound: too little memory is bad, but enough memory proves nothing.

A container may have less memory than its machine, so the limit of its control group (version 2) counts too.
"""

from collections.abc import Iterator
from pathlib import Path

import psutil

from rotary_foundry.data.corpus import shard_folders
from rotary_foundry.data.shard_index import read_index
from rotary_foundry.doctor.disk_space import evaluation_needs, loaders_need
from rotary_foundry.doctor.finding import Finding, bad, good
from rotary_foundry.recipe import Plan, Recipe
from rotary_foundry.utils.wording import size

RANK_BYTES_A_SHARD = 129e6 / 104_000
WORKER_BYTES_A_SHARD = 68e6 / 104_000
CONTROL_GROUP = Path("/sys/fs/cgroup")


def check_memory(recipe: Recipe, plan: Plan, nodes: int, ranks: int, group: Path = CONTROL_GROUP) -> Iterator[Finding]:
    """Compare the free memory with the need of the loaders of one of `nodes` nodes, with `ranks` ranks.

    Shards whose index is not in `data.local` are not counted.
    """
    import torch

    local, shards, largest = Path(recipe.data.local), 0, (0, "")
    for folder, row_length in shard_folders(recipe):
        path = local / folder / "index.json"
        if path.is_file():
            rows = read_index(path).rows
            shards += len(rows)
            largest = max(largest, (int(rows.sum()), f"{folder.split('/')[0]}, in rows of {row_length:,}"))
    workers = recipe.data.num_workers
    on_gpus = torch.cuda.is_available()
    known = ranks * shards * (RANK_BYTES_A_SHARD + workers * WORKER_BYTES_A_SHARD)
    batches = loaders_need(recipe, plan, nodes) + (evaluation_needs(recipe, plan, ranks) if on_gpus else 0)
    free, needed = _free(group), known + batches
    of_shards = (
        f"{size(known)} for {shards:,} shards (the largest source is {largest[1]}, with {largest[0]:,} rows)"
        if shards
        else f"nothing for shards, which are not in {local}"
    )
    said = (
        f"{size(free)} free; the loaders of {ranks} ranks with {workers} workers each take {size(needed)}: "
        f"{of_shards} and {size(batches)} for batches"
    )
    if free < needed:
        yield bad("memory", said, "set a smaller data.num_workers, use fewer ranks on this machine, or add memory")
    else:
        yield good("memory", said)


def _free(group: Path) -> int:
    """Return the bytes that are available on this machine and within the limit of this control group."""
    free = psutil.virtual_memory().available
    try:
        limit, used = ((group / f"memory.{name}").read_text().strip() for name in ("max", "current"))
    except OSError:  # not in a control group of version 2
        return free
    return free if limit == "max" else min(free, int(limit) - int(used))
