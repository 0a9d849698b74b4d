"""Stages run by datatrove's executors: on this machine, on a Slurm cluster, on a Ray cluster.

All three keep a mark for each finished task in the work folder and leave those tasks out the next time. Here and on Ray
one stage is run to its end before the next; on Slurm all are submitted at once, each waiting for the one before.
"""

import inspect
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import multiprocess
from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from loguru import logger

from encoder_foundry.errors import ConfigurationError, DataError
from encoder_foundry.preparation.work import Work

log = logging.getLogger(__name__)


class QuietLocalExecutor(LocalPipelineExecutor):
    """datatrove's, without its log on the terminal: what matters of it is raised or printed by us."""

    def _run_for_rank(self, *arguments, **keywords):
        logger.disable("datatrove")
        return super()._run_for_rank(*arguments, **keywords)


EXECUTORS = {"local": QuietLocalExecutor, "slurm": SlurmPipelineExecutor, "ray": RayPipelineExecutor}
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
    options = options or {}
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
    with _cluster() if name == "ray" else _this_machine():
        for stage in stages:
            start = time.perf_counter()
            given = options if name == "ray" else _local(stage, options)
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


@contextmanager
def _this_machine() -> Iterator[None]:
    logger.disable("datatrove")
    # every stage has workers of its own, which are forks of a server that has imported what takes seconds
    multiprocess.set_forkserver_preload(["encoder_foundry.preparation.stages"])
    yield


def _run_stage(executor: PipelineExecutor, stage: Stage, work: Work) -> None:
    try:
        executor.run()
    except Exception as error:
        raise _failure(stage, work, error) from error
    if executor.get_incomplete_ranks():
        raise _failure(stage, work, None)


def _submit(stages: list[Stage], work: Work, options: dict) -> None:
    last = None
    for stage in stages:
        for reason in work.errors(stage.name):
            log.warning(f"{stage.name}: failed the last time: {reason}")
        names = {"job_name": f"{work.config.name}-{stage.name}"}
        # else the jobs after one that failed would wait for it for ever
        sbatch = {"sbatch_args": {"kill-on-invalid-dep": "yes"} | options.get("sbatch_args", {})}
        last = SlurmPipelineExecutor(**_arguments(stage, work), **(names | options | sbatch), depends=last)
    try:
        last.run()
    except FileNotFoundError as error:
        raise DataError(f"executor: slurm: no '{error.filename}' here; run this where jobs are submitted") from None


def _arguments(stage: Stage, work: Work) -> dict:
    return {"pipeline": stage.steps, "tasks": stage.tasks, "logging_dir": str(work.folder / "logs" / stage.name)}


def _local(stage: Stage, options: dict) -> dict:
    """Workers for all cores, and for each its share of the cores to tokenise with."""
    cores = len(os.sched_getaffinity(0))
    workers = min(options.get("workers", cores), stage.tasks)
    os.environ["RAYON_NUM_THREADS"] = str(max(1, cores // workers))
    return options | {"workers": workers}


def _failure(stage: Stage, work: Work, error: Exception | None) -> Exception:
    """What to say of a stage that did not end well: our own words for it, if a task had some."""
    reasons = work.errors(stage.name)
    if not reasons:
        return error or DataError(f"{work.folder}/logs/{stage.name}: some of its tasks did not finish; see its logs")
    more = f" (and {len(reasons) - 1} more, in {work.folder}/errors)" if len(reasons) > 1 else ""
    return DataError(f"{reasons[0]}{more}")
