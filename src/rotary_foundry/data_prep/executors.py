"""Stages run by datatrove's executors: on this machine, on a Slurm cluster, on a Ray cluster.

All three keep a mark for each finished task in the work folder and leave those tasks out the next time. Here and on Ray
one stage is run to its end before the next; on Slurm all are submitted at once, each waiting for the one before.
"""

import inspect
import json
import logging
import multiprocessing
import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import datatrove.executor.ray
from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.executor.ray import RankWorker
from datatrove.pipeline.base import PipelineStep
from loguru import logger

from rotary_foundry.data_prep.work import Work
from rotary_foundry.utils.allocator import give_back_freed_memory
from rotary_foundry.utils.errors import ConfigurationError, DataError
from rotary_foundry.utils.installing import install_command

log = logging.getLogger(__name__)


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
                self._run_for_rank(rank)
            return
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["rotary_foundry.data_prep.stages"])  # a second's imports, once for all
        pool = ProcessPoolExecutor(self.workers, context, initializer=_start, initargs=(_threads(self.workers),))
        try:
            for future in as_completed([pool.submit(self._run_for_rank, rank) for rank in ranks]):
                future.result()
        except BrokenProcessPool:
            raise DataError(
                "a worker process was killed, perhaps for want of memory; give the same command again, with fewer "
                "workers: 'executor.local.workers=1'"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)  # what runs is awaited; after an error nothing more is begun

    def _run_for_rank(self, *arguments, **keywords):
        logger.disable("datatrove")
        try:
            return super()._run_for_rank(*arguments, **keywords)
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
                executor_ref._run_for_rank(rank, node_rank=node_idx if executor_ref.nodes_per_task > 1 else -1)
            except Exception as error:  # raised when all have had their turn
                errors.append(error)
            give_back_freed_memory()
        if errors:
            raise errors[0]


datatrove.executor.ray.RankWorker = RayWorker  # it knows no other way to be given one


def _threads(workers: int) -> int:
    """A worker's share of the cores, to tokenise with."""
    return max(1, len(os.sched_getaffinity(0)) // workers)


def _start(threads: int) -> None:
    os.environ["RAYON_NUM_THREADS"] = str(threads)


EXECUTORS = {"local": LocalExecutor, "slurm": SlurmPipelineExecutor, "ray": RayPipelineExecutor}
JOBS = "jobs.json"  # in the work folder: the Slurm jobs of the last submission
OURS = {"pipeline", "tasks", "logging_dir", "depends", "skip_completed", "start_method"}


@dataclass
class Stage:
    """Steps that are run for each of `tasks` tasks."""

    name: str
    steps: list[PipelineStep]
    tasks: int


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


def run(stages: list[Stage], work: Work) -> bool:
    """Run the stages; on Slurm, submit them.

    Returns:
        Whether they are done.

    Raises:
        DataError: tasks failed; the first of their reasons. What other tasks have done is kept.
    """
    name, options = check_executor(work.config.executor)
    if name == "slurm":
        _submit(stages, work, options)
        return False
    with _cluster() if name == "ray" else nullcontext():
        for stage in stages:
            start = time.perf_counter()
            given = options if name == "ray" else _local(stage, work, options)
            _run_stage(EXECUTORS[name](**_arguments(stage, work), **given), stage, work)
            seconds = time.perf_counter() - start
            log.info(f"{stage.name}: {stage.tasks} task{'s' * (stage.tasks > 1)} in {seconds:.1f} s")
    return True


@contextmanager
def _cluster() -> Iterator[None]:
    """The Ray cluster at RAY_ADDRESS; without that, one on this machine for as long as this takes."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init()
    try:
        yield
    finally:
        ray.shutdown()


def _run_stage(executor: PipelineExecutor, stage: Stage, work: Work) -> None:
    try:
        executor.run()
    except Exception as error:
        raise _failure(stage, work, error) from error
    if executor.get_incomplete_ranks():
        raise _failure(stage, work, None)


def _submit(stages: list[Stage], work: Work, options: dict) -> None:
    """Submit a job array for each stage that is not finished, each to start when the one before has ended well.

    Raises:
        DataError: jobs of an earlier submission are still there, or there is no Slurm here.
    """
    try:
        _refuse_second_submission(work)
        executors = []
        for stage in stages:
            for reason in work.errors(stage.name):
                log.warning(f"{stage.name}: failed the last time: {reason}")
            names = {"job_name": f"{work.config.name}-{stage.name}"}
            # else the jobs after one that failed would wait for it for ever
            sbatch = {"sbatch_args": {"kill-on-invalid-dep": "yes"} | (options.get("sbatch_args") or {})}
            before = executors[-1] if executors else None
            executors.append(
                SlurmPipelineExecutor(**_arguments(stage, work), **(names | options | sbatch), depends=before)
            )
        executors[-1].run()
    except FileNotFoundError as error:
        raise DataError(f"executor: slurm: no '{error.filename}' here; run this where jobs are submitted") from None
    except subprocess.CalledProcessError:  # sbatch has said why, on the terminal
        raise DataError("executor: slurm: sbatch refuses these jobs, as it says above; change its options") from None
    jobs = [executor.job_id for executor in executors if executor.job_id not in (None, -1)]
    (work.folder / JOBS).write_text(json.dumps(jobs), encoding="utf-8")


def _refuse_second_submission(work: Work) -> None:
    jobs = json.loads((work.folder / JOBS).read_text(encoding="utf-8")) if (work.folder / JOBS).exists() else []
    if not jobs:
        return
    # squeue ends with a status and no line where it does not know the jobs any more
    listed = subprocess.run(["squeue", "--noheader", "--jobs", ",".join(jobs)], capture_output=True, text=True)
    if listed.stdout.strip():
        raise DataError(
            f"{work.folder}: jobs of the submission before are still queued or running ({', '.join(jobs)}); wait for "
            "them to end, or scancel them"
        )


def _arguments(stage: Stage, work: Work) -> dict:
    return {"pipeline": stage.steps, "tasks": stage.tasks, "logging_dir": str(work.folder / "logs" / stage.name)}


def _local(stage: Stage, work: Work, options: dict) -> dict:
    """As many workers as there are cores, or as are asked for, and no more than parts: few have more cores each."""
    workers = options.get("workers", len(os.sched_getaffinity(0)))
    return options | {"workers": min(workers, stage.tasks, sum(work.parts.values()))}


def _failure(stage: Stage, work: Work, error: Exception | None) -> Exception:
    """What to say of a stage that did not end well: our own words for it, if a task had some."""
    reasons = work.errors(stage.name)
    if not reasons:
        return error or DataError(f"{work.folder}/logs/{stage.name}: some of its tasks did not finish; see its logs")
    more = f" (and {len(reasons) - 1} more, in {work.folder}/errors)" if len(reasons) > 1 else ""
    return DataError(f"{reasons[0]}{more}")
