"""datatrove's executors, as a preparation uses them: on this machine, on a Slurm cluster, on a Ray cluster."""

import inspect
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from importlib.util import find_spec
from typing import Any

from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.ray import RankWorker
from loguru import logger

from rotary_foundry.compat.datatrove import run_task, set_ray_worker
from rotary_foundry.utils.allocator import give_back_freed_memory
from rotary_foundry.utils.errors import ConfigurationError, DataError
from rotary_foundry.utils.installing import install_command


class LocalExecutor(LocalPipelineExecutor):
    """datatrove's, with the standard library's pool of processes in place of its own.

    datatrove's waits for ever for a worker that was killed, as by the kernel for its memory. And its log stays off the
    terminal: what matters of it is raised or printed by us.
    """

    def run(self) -> None:
        ranks = self.get_incomplete_ranks()
        if self.workers == 1:
            pipeline = self.pipeline
            for rank in ranks:
                self.pipeline = deepcopy(pipeline)
                _run_task(self, rank)
            return
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["rotary_foundry.data_prep.stages"])  # a second's imports, once for all
        pool = ProcessPoolExecutor(self.workers, context, initializer=_start, initargs=(_threads(self.workers),))
        try:
            for future in as_completed([pool.submit(_run_task, self, rank) for rank in ranks]):
                future.result()
        except BrokenProcessPool:
            raise DataError(
                "a worker process was killed, perhaps for want of memory; give the same command again, with fewer "
                "workers: 'executor.local.workers=1'"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)  # what runs is awaited; after an error nothing more is begun


def _run_task(executor: LocalExecutor, rank: int) -> None:
    logger.disable("datatrove")
    try:
        run_task(executor, rank)
    finally:
        give_back_freed_memory()


class RayWorker(RankWorker):
    """datatrove's, which runs the tasks of a job one after the other in the Ray worker itself.

    datatrove's forks a pool of processes for them from that worker, of whose dozens of threads any may hold a lock at
    that moment. The child waits for it for ever, and the preparation with it: so it went in continuous integration.
    """

    def run_for_rank(
        self, executor_ref: RayPipelineExecutor, ranks: list[int], node_ips: list[str], node_idx: int
    ) -> None:
        os.environ |= {"RAY_NODELIST": ",".join(node_ips), "RAY_NODEID": str(node_idx)}
        errors = []
        for rank in ranks:
            try:
                run_task(executor_ref, rank, node_idx if executor_ref.nodes_per_task > 1 else -1)
            except Exception as error:  # raised when all have had their turn
                errors.append(error)
            give_back_freed_memory()
        if errors:
            raise errors[0]


set_ray_worker(RayWorker)


def _threads(workers: int) -> int:
    """A worker's share of the cores, to tokenise with."""
    return max(1, len(os.sched_getaffinity(0)) // workers)


def _start(threads: int) -> None:
    os.environ["RAYON_NUM_THREADS"] = str(threads)


EXECUTORS = {"local": LocalExecutor, "slurm": SlurmPipelineExecutor, "ray": RayPipelineExecutor}
OURS = {"pipeline", "tasks", "logging_dir", "depends", "skip_completed", "start_method"}


def check_executor(executor: dict[str, Any]) -> tuple[str, dict]:
    """The name and the options that the key `executor` gives.

    Raises:
        ConfigurationError: no such executor, or an option that it does not take or lacks.
    """
    executor = executor or {"local": {}}
    if len(executor) != 1 or next(iter(executor)) not in EXECUTORS:
        raise ConfigurationError(f"one of {', '.join(EXECUTORS)} is wanted, as in {{local: {{workers: 2}}}}")
    name, options = next(iter(executor.items()))
    options = {} if options is None else options
    if not isinstance(options, dict):
        raise ConfigurationError(f"{name}: options are wanted by name, as in {{{name}: {{workers: 2}}}}")
    workers = options.get("workers", 1)
    if type(workers) is not int or (workers < 1 and (workers != -1 or name == "local")):
        raise ConfigurationError(f"{name}: workers are a number from 1 on, not {workers}")
    if name == "ray" and find_spec("ray") is None:
        raise ConfigurationError(f"ray: is not installed; {install_command('ray')}")
    parameters = inspect.signature(EXECUTORS[name]).parameters
    known = [option for option in parameters if option not in OURS]
    for option in options:
        if option not in known:
            raise ConfigurationError(f"{name}: unknown option '{option}'; datatrove's takes {', '.join(known)}")
    for option in known:
        if parameters[option].default is inspect.Parameter.empty and option not in options:
            raise ConfigurationError(f"{name}: '{option}' is wanted, as datatrove's executor takes it")
    return name, options
