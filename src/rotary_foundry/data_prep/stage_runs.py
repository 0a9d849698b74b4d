"""Run stages by datatrove's executors.

All of them keep a mark for each finished task in the work folder and leave those tasks out the next time. Here and on
Ray one stage runs to its end before the next; on Slurm all are submitted at once, each waiting for the one before.
"""

import json
import logging
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from datatrove.executor import SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep

from rotary_foundry.data_prep.executors import EXECUTORS, check_executor
from rotary_foundry.data_prep.work import Work
from rotary_foundry.runs.run_lock import RunLock
from rotary_foundry.utils.errors import DataError

JOBS = "jobs.json"  # in the work folder: the Slurm jobs of the last submission

log = logging.getLogger(__name__)


@dataclass
class Stage:
    """Steps that are run for each of `tasks` tasks."""

    name: str
    steps: list[PipelineStep]
    tasks: int


def run(stages: list[Stage], work: Work, lock: RunLock) -> bool:
    """Run the stages, as long as the lock of the work folder is held; on Slurm, submit them.

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
            lock.check()
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
