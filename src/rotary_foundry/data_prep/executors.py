"""datatrove's executors for preparation: on this machine, on a Slurm cluster or on a Ray cluster."""

import inspect
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from importlib.util import find_spec
from threading import Thread
from typing import Any

from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.ray import RankWorker
from loguru import logger

from rotary_foundry.compat.datatrove import run_task, set_ray_worker
from rotary_foundry.utils.allocator import give_back_freed_memory
from rotary_foundry.utils.errors import ConfigurationError, DataError
from rotary_foundry.utils.installing import install_command


class LocalExecutor(LocalPipelineExecutor):
    """datatrove's local executor, with the standard library's process pool in place of datatrove's.

    datatrove's pool waits forever for a worker that was killed, for example by the kernel when memory ran out. This
    class also keeps datatrove's log off the terminal; we raise or print what the user needs.
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
        context.set_forkserver_preload(
            ["rotary_foundry.data_prep.stages"]
        )  # the imports take a second; do them once for all workers
        pool = ProcessPoolExecutor(self.workers, context, initializer=_start, initargs=(_threads(self.workers),))
        try:
            for future in as_completed([pool.submit(_run_task, self, rank) for rank in ranks]):
                future.result()
        except BrokenProcessPool:
            raise DataError(
                "a worker process was killed, perhaps because memory ran out; run the same command again with fewer "
                "workers: 'executor.local.workers=1'"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)  # wait for running tasks; after an error, start no more


def _run_task(executor: LocalExecutor, rank: int) -> None:
    logger.disable("datatrove")
    try:
        run_task(executor, rank)
    finally:
        give_back_freed_memory()


class RayWorker(RankWorker):
    """datatrove's Ray worker, changed to run the tasks of a job one after the other in the worker process itself.

    datatrove forks a pool of processes from the worker. If one of the worker's dozens of threads holds a lock at that
    moment, the child waits for it forever, and so does the preparation. This happened in continuous integration.
    """

    def run_for_rank(
        self, executor_ref: RayPipelineExecutor, ranks: list[int], node_ips: list[str], node_idx: int
    ) -> None:
        os.environ |= {"RAY_NODELIST": ",".join(node_ips), "RAY_NODEID": str(node_idx)}
        errors = []
        for rank in ranks:
            try:
                run_task(executor_ref, rank, node_idx if executor_ref.nodes_per_task > 1 else -1)
            except Exception as error:  # raised after all tasks have run
                errors.append(error)
            give_back_freed_memory()
        if errors:
            raise errors[0]


set_ray_worker(RayWorker)


def _threads(workers: int) -> int:
    """Return the number of cores that each worker may use for tokenising."""
    return max(1, len(os.sched_getaffinity(0)) // workers)


def _start(threads: int) -> None:
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    Thread(target=_end_with_the_preparation, daemon=True).start()


def _end_with_the_preparation() -> None:
    """End this worker when the process that started it was killed; otherwise it would write while the next run does."""
    multiprocessing.parent_process().join()
    os._exit(1)


EXECUTORS = {"local": LocalExecutor, "slurm": SlurmPipelineExecutor, "ray": RayPipelineExecutor}
OURS = {"pipeline", "tasks", "logging_dir", "depends", "skip_completed", "start_method"}


def check_executor(executor: dict[str, Any]) -> tuple[str, dict]:
    """Return the executor's name and options from the value of the key `executor`.

    Raises:
        ConfigurationError: the executor does not exist, or an option is unknown or missing.
    """
    executor = executor or {"local": {}}
    if len(executor) != 1 or next(iter(executor)) not in EXECUTORS:
        raise ConfigurationError(
            f"expected one of {', '.join(EXECUTORS)}, as in {{local: {{workers: 2}}}}, got {', '.join(executor)}"
        )
    name, options = next(iter(executor.items()))
    options = {} if options is None else options
    if not isinstance(options, dict):
        raise ConfigurationError(f"{name}: expected options by name, as in {{{name}: {{workers: 2}}}}, got {options!r}")
    workers = options.get("workers", 1)
    if type(workers) is not int or (workers < 1 and (workers != -1 or name == "local")):
        raise ConfigurationError(f"{name}: workers: expected an integer of at least 1, got {workers}")
    if name == "ray" and find_spec("ray") is None:
        raise ConfigurationError(f"ray: Ray is not installed; {install_command('ray')}")
    parameters = inspect.signature(EXECUTORS[name]).parameters
    known = [option for option in parameters if option not in OURS]
    for option in options:
        if option not in known:
            raise ConfigurationError(f"{name}: unknown option '{option}'; datatrove's takes {', '.join(known)}")
    for option in known:
        if parameters[option].default is inspect.Parameter.empty and option not in options:
            raise ConfigurationError(f"{name}: option '{option}' is missing; datatrove's executor requires it")
    return name, options
