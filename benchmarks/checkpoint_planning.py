"""Count and time the planning of one checkpoint of base on a given number of simulated ranks.

Before a checkpoint is written, each rank lists what it would write. Rank 0 gets all lists, removes duplicates, checks
that nothing is missing or listed twice, and returns to each rank its own list. After the writing, each rank reports to
rank 0 what it wrote where, and rank 0 writes that into one file. The code is torch's own, with Composer's settings.

This process is each rank in turn, on torch's `fake` backend: the sharded tensors have placements and no memory. Lists
are pickled, as torch does, but not sent. So the times of the network and of the disk are not included.

Composer saves the generators of all ranks with a checkpoint, so each rank lists four entries for every rank.

    python benchmarks checkpoint_planning
"""

import json
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OF_A_NODE = 8
ONE_SHARD_GROUP = ["fsdp_config.data_parallel_replicate_degree=1"]
ROOT = Path(__file__).parents[1]


def planning(ranks: int, overrides: list[str]) -> dict:
    """Return the figures of `_planning` for base on `ranks` GPUs, from a separate process."""
    command = [sys.executable, __file__, str(ranks), *overrides]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(said.stdout.splitlines()[-1])


def _planning(ranks: int, overrides: list[str]) -> dict:
    """Return the ranks `saving`, `items` in their plans, items `written`, `bytes` to rank 0, CPU seconds by part."""
    from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter
    from torch.distributed.checkpoint.storage import WriteResult

    from rotary_foundry.compat.torch import StorageInfo
    from rotary_foundry.runs.recipes import load_recipe

    recipe = load_recipe(ROOT / "yamls/main/base.yaml", overrides)
    replicas, saving = recipe.fsdp_config.degrees(ranks, -(-ranks // OF_A_NODE))  # the first replica saves
    plans, listing = [], []
    with tempfile.TemporaryDirectory() as folder:
        for rank in range(saving):
            state = _state(recipe, ranks, rank, replicas)
            planner = DefaultSavePlanner(dedup_save_to_lowest_rank=True)
            writer = FileSystemWriter(folder)
            started = time.process_time()
            planner.set_up_planner(state, writer.storage_meta(), is_coordinator=rank == 0)
            plan = pickle.dumps(writer.prepare_local_plan(planner.create_local_plan()))
            listing.append(time.process_time() - started)
            plans.append(plan)
            if rank == 0:
                first = planner, writer
        planner, writer = first
        started = time.process_time()
        all_plans, metadata = planner.create_global_plan([pickle.loads(plan) for plan in plans])
        all_plans = writer.prepare_global_plan(all_plans)
        for plan in all_plans:
            pickle.dumps(plan)
        planned = time.process_time() - started
        results = [
            pickle.dumps([WriteResult(item.index, 1, StorageInfo(f"__{rank}_0.distcp", 0, 1)) for item in plan.items])
            for rank, plan in enumerate(all_plans)
        ]
        started = time.process_time()
        writer.set_up_storage_writer(True)
        writer.finish(metadata, [pickle.loads(result) for result in results])
        finished = time.process_time() - started
    return {
        "saving": saving,
        "items": sum(len(pickle.loads(plan).items) for plan in plans),
        "written": sum(len(plan.items) for plan in all_plans),
        "bytes": sum(map(len, plans)),
        "listing": max(listing),
        "planned": planned,
        "finished": finished,
    }


def _state(recipe, ranks: int, rank: int, replicas: int) -> dict:
    """Make a rank's state dict, of tensors without memory, as Composer's `get_model_state_dict` and the like do."""
    import torch
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if distributed.is_initialized():
        distributed.destroy_process_group()
    distributed.init_process_group("fake", rank=rank, world_size=ranks, store=FakeStore())
    if replicas == 1:
        mesh, placements = init_device_mesh("cpu", (ranks,), mesh_dim_names=("shard",)), [Shard(0)]
    else:
        shape = replicas, ranks // replicas
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard"))
        placements = [Replicate(), Shard(0)]

    def sharded(whole: tuple[int, ...]) -> DTensor:
        local, _ = compute_local_shape_and_global_offset(whole, mesh, placements)
        part = torch.empty(local, device="meta")
        stride = torch.empty(whole, device="meta").stride()
        return DTensor.from_local(part, mesh, placements, run_check=False, shape=torch.Size(whole), stride=stride)

    parameters = {f"network.{name}": whole for name, whole in recipe.model.shape.parameter_shapes().items()}
    moments = {
        name: {"step": torch.zeros(()), "exp_avg": sharded(whole), "exp_avg_sq": sharded(whole)}
        for name, whole in parameters.items()
    }
    group = {"lr": 1e-3, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.0, "params": list(parameters)}
    generators = {"python": (), "numpy": (), "torch": torch.zeros(1), "cuda": torch.zeros(1)}
    return {
        "state": {
            "model": {name: sharded(whole) for name, whole in parameters.items()},
            "optimizers": {"StableAdamW": {"state": moments, "param_groups": [group]}},
            "timestamp": {"Timestamp": {"batch": 0}},
        },
        "rng": [dict(generators) for _ in range(ranks)],
    }


if __name__ == "__main__":
    print(json.dumps(_planning(int(sys.argv[1]), sys.argv[2:])))
