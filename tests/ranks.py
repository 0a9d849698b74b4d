"""Functions called on several ranks over gloo."""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch.multiprocessing as mp
from torch import distributed

from tests.forked_composer import PRELOADED


def on_ranks(ranks: int, folder: Path, function: Callable, *arguments) -> None:
    """Call a module's function in that many new processes, one process group; raises what any of them raises.

    They are forked by a server that has imported torch and Composer: spawned, each would take ten seconds for it. They
    get the environment as it is now, not as it was when the server was started.
    """
    mp.get_context("forkserver").set_forkserver_preload(list(PRELOADED))
    store = Path(tempfile.mkdtemp(dir=folder)) / "store"  # a store that another group has used holds its addresses
    arguments = (ranks, store, dict(os.environ), function, arguments)
    mp.start_processes(_on_rank, args=arguments, nprocs=ranks, start_method="forkserver")


def _on_rank(
    rank: int, ranks: int, store: Path, environment: dict[str, str], function: Callable, arguments: tuple
) -> None:
    world = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "NODE_RANK": "0"}
    os.environ |= environment | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)}  # for Composer
    mp.set_start_method("fork", force=True)  # of a loader's workers, as in a rank that a launcher has started
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    try:
        function(*arguments)
    finally:
        time.sleep(0.2)  # gloo's thread lets go of the last message under the GIL, which destroying the group holds
        distributed.destroy_process_group()
