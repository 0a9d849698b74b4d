"""Functions called on several ranks over gloo."""

import os
from collections.abc import Callable
from pathlib import Path

import torch.multiprocessing as mp
from torch import distributed


def on_ranks(ranks: int, folder: Path, function: Callable, *arguments) -> None:
    """Call a module's function in that many new processes, one process group; raises what any of them raises.

    They are forked by a server that has imported torch: spawned, each would import it anew, a few seconds every time.
    """
    mp.get_context("forkserver").set_forkserver_preload(["torch.distributed.checkpoint", "torch.distributed.fsdp"])
    arguments = (ranks, folder / f"store-{function.__name__}-{ranks}", function, arguments)
    mp.start_processes(_on_rank, args=arguments, nprocs=ranks, start_method="forkserver")


def _on_rank(rank: int, ranks: int, store: Path, function: Callable, arguments: tuple) -> None:
    world = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "NODE_RANK": "0"}
    os.environ |= world | {"RANK": str(rank), "LOCAL_RANK": str(rank)}  # for Composer
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    try:
        function(*arguments)
    finally:
        distributed.destroy_process_group()
