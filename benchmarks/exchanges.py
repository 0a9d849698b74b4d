"""Count what a rank exchanges with the others in an update, on simulated nodes of eight GPUs.

This process is rank 0 of all ranks. torch's `fake` backend accepts every collective and does nothing, so the values are
wrong, but the requests are those of a run. The model is sharded by training's own code, and its blocks see a few
tokens. The microbatches of an update are those of the recipe's first stage on that number of GPUs.

A ring is assumed: in an all-gather or a reduce-scatter over n ranks, each rank receives (n - 1) / n of the whole, and
in an all-reduce twice that. A group that spans more than one node counts as network traffic.

    python benchmarks exchanges
"""

import json
import os
import subprocess
import sys
from pathlib import Path

OF_A_NODE = 8
TOKENS = 16
BEFORE = ["fsdp_config.data_parallel_replicate_degree=1", "fsdp_config.reshard_after_forward=true"]
ROOT = Path(__file__).parents[1]


def counts(recipe: str, ranks: int, before: bool) -> dict:
    """Return `microbatches` and `collectives` per update, and the `bytes` that a rank gets, `network` between nodes.

    Args:
        recipe: base or large.
        ranks: number of GPUs.
        before: use the settings until 2026-11-29: one shard group, exchanges in every microbatch, all in float32.
    """
    environment = os.environ | {"LOCAL_WORLD_SIZE": str(OF_A_NODE), "WORLD_SIZE": str(ranks), "RANK": "0"}
    command = [sys.executable, __file__, recipe, str(ranks), *(["before"] if before else [])]
    said = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(said.stdout.splitlines()[-1])


def _count(recipe_name: str, ranks: int, before: bool) -> dict:
    import torch
    from torch import distributed
    from torch.distributed.fsdp import MixedPrecisionPolicy
    from torch.testing._internal.distributed.fake_pg import FakeStore
    from torch.utils._python_dispatch import TorchDispatchMode

    from rotary_foundry.algorithms.one_reduction import mark_last
    from rotary_foundry.runs.recipes import load_recipe
    from rotary_foundry.training import sharding

    recipe = load_recipe(ROOT / "yamls/main" / f"{recipe_name}.yaml", BEFORE if before else [])
    if before:
        sharding.gather_matrices_in = lambda _: MixedPrecisionPolicy(cast_forward_inputs=False)
    distributed.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    sharding.set_timeout = lambda *_: None  # the fake backend has no timeout
    found = {"collectives": 0, "bytes": 0.0, "network": 0.0}

    class Counted(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "c10d":
                self.count(func._schema.name, args)
            return func(*args, **(kwargs or {}))

        def count(self, name: str, args: tuple) -> None:
            tensors = [tensor for arg in args for tensor in (arg if isinstance(arg, list) else [arg])]
            whole = max(tensor.nbytes for tensor in tensors if torch.is_tensor(tensor))
            group = next(
                arg for arg in args if isinstance(arg, torch.ScriptObject) and "ProcessGroup" in str(arg._type())
            )
            size = distributed.ProcessGroup.unbox(group).size()
            received = whole * (size - 1) / size * (2 if "allreduce" in name else 1)
            found["collectives"] += 1
            found["bytes"] += received
            members = distributed.get_process_group_ranks(distributed.ProcessGroup.unbox(group))
            if len({rank // OF_A_NODE for rank in members}) > 1:
                found["network"] += received

    stage = next(iter(recipe.stages.values()))
    rows = -(-stage.global_train_batch_size // ranks)
    microbatches = -(-rows // stage.device_train_microbatch_size)
    knobs = recipe.knobs_of(next(iter(recipe.stages)))
    with torch.device("meta"):
        network = recipe.family.network(recipe.model.shape, _numbers(knobs), "sdpa")
    sharding.shard(network, recipe, torch.device("cpu"))
    network.to_empty(device="cpu")
    input_ids, cu_seqlens = torch.arange(TOKENS), torch.tensor([0, TOKENS], dtype=torch.int32)
    whole = not recipe.fsdp_config.reshards(recipe.model.shape.parameters)
    with Counted(), torch.autocast("cpu", torch.bfloat16):
        for left in reversed(range(microbatches)):
            if whole:
                mark_last(network, left == 0)
            network(input_ids, cu_seqlens, TOKENS, labels=input_ids).cross_entropy.backward()
    return {"microbatches": microbatches, **found}


def _numbers(knobs: dict) -> dict:
    return {name: getattr(value, "start", value) for name, value in knobs.items() if value is not None}


if __name__ == "__main__":
    print(json.dumps(_count(sys.argv[1], int(sys.argv[2]), sys.argv[3:] == ["before"])))
