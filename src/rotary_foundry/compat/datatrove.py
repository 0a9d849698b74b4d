"""Private parts of datatrove 0.9."""

import datatrove.executor.ray
from datatrove.executor.base import PipelineExecutor
from datatrove.executor.ray import RankWorker


def run_task(executor: PipelineExecutor, rank: int, node_rank: int = -1) -> None:
    """Run one task of an executor in this process.

    An executor's public `run` chooses the processes itself; ours come from other pools (data_prep/executors.py). Needed
    until datatrove takes a pool, or makes this method public.
    """
    executor._run_for_rank(rank, node_rank=node_rank)


def set_ray_worker(worker: type[RankWorker]) -> None:
    """Make every RayPipelineExecutor of this process use `worker`. Needed until it takes a worker as an argument."""
    datatrove.executor.ray.RankWorker = worker
