"""Run the stages of a preparation with datatrove's executors.

Every executor writes a marker file for each finished task to the work folder and skips those tasks in the next run.
The local and Ray executors run the stages one after the other. The Slurm executor submits all stages at once, and each
waits for the one before it.
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
    """A list of steps, run once for each of `tasks` tasks."""

    name: str
    steps: list[PipelineStep]
    tasks: int


def run(stages: list[Stage], work: Work, lock: RunLock) -> bool:
    """Run the stages, as long as the lock of the work folder is held; on Slurm, submit them.

    Returns:
        Whether the stages have finished; False on Slurm.

    Raises:
        DataError: tasks failed. The message is that of the first; the results of other tasks are kept.
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
    """Connect to the Ray cluster at RAY_ADDRESS; if that is not set, start one here and stop it at the end."""
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
    """Submit a job array for each unfinished stage; each starts when the one before it has succeeded.

    Raises:
        DataError: jobs of an earlier submission are still queued or running, or Slurm is not installed here.
    """
    try:
        _refuse_second_submission(work)
        executors = []
        for stage in stages:
            for reason in work.errors(stage.name):
                log.warning(f"{stage.name}: failed in the last run: {reason}")
            names = {"job_name": f"{work.config.name}-{stage.name}"}
            # without this, jobs that depend on a failed job would wait forever
            sbatch = {"sbatch_args": {"kill-on-invalid-dep": "yes"} | (options.get("sbatch_args") or {})}
            before = executors[-1] if executors else None
            executors.append(
                SlurmPipelineExecutor(**_arguments(stage, work), **(names | options | sbatch), depends=before)
            )
        executors[-1].run()
    except FileNotFoundError as error:
        raise DataError(
            f"executor: slurm: command '{error.filename}' not found; run this on a login node of the cluster"
        ) from None
    except subprocess.CalledProcessError:  # sbatch has said why, on the terminal
        raise DataError(
            "executor: slurm: sbatch refused these jobs; see its message above and change its options"
        ) from None
    jobs = [executor.job_id for executor in executors if executor.job_id not in (None, -1)]
    (work.folder / JOBS).write_text(json.dumps(jobs), encoding="utf-8")


def _refuse_second_submission(work: Work) -> None:
    jobs = json.loads((work.folder / JOBS).read_text(encoding="utf-8")) if (work.folder / JOBS).exists() else []
    if not jobs:
        return
    # if squeue no longer knows the jobs, it fails and prints no line
    listed = subprocess.run(["squeue", "--noheader", "--jobs", ",".join(jobs)], capture_output=True, text=True)
    if listed.stdout.strip():
        raise DataError(
            f"{work.folder}: jobs of the last submission are still queued or running ({', '.join(jobs)}); wait for "
            "them to end, or cancel them with scancel"
        )


def _arguments(stage: Stage, work: Work) -> dict:
    return {"pipeline": stage.steps, "tasks": stage.tasks, "logging_dir": str(work.folder / "logs" / stage.name)}


def _local(stage: Stage, work: Work, options: dict) -> dict:
    """Set the number of workers: `workers` if given, otherwise one per core; at most the number of parts and tasks."""
    workers = options.get("workers", len(os.sched_getaffinity(0)))
    return options | {"workers": min(workers, stage.tasks, len(work.tasks) + len(work.config.labelled))}


def _failure(stage: Stage, work: Work, error: Exception | None) -> Exception:
    """Return the error to raise for a failed stage: the first message of a task, if any task wrote one."""
    reasons = work.errors(stage.name)
    if not reasons:
        return error or DataError(f"{work.folder}/logs/{stage.name}: some tasks did not finish; see these logs")
    more = f" (and {len(reasons) - 1} more, in {work.folder}/errors)" if len(reasons) > 1 else ""
    return DataError(f"{reasons[0]}{more}")
