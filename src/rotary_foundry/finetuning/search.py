"""Run a search: a job for each point of a task's grid and each seed, in parallel, each a process on its own device.

    runs/finetune/<model>/
      lock.json                        the process that uses the folder (runs/run_lock.py)
      results.json                     every task's best point, its mean and deviation over the seeds
      <task>/data/                     its examples as tokens
      <task>/<point>/seed-<n>/         a job: job.json, log.txt, result.json
      <task>/<point>/seed-<n>/model/   its best model, for the best point only
      <task>/<point>/seed-<n>/*.json   predictions for unlabelled examples, named by the task's data.test

Each point is run with the first `search_seeds` seeds, and then the point with the best mean with all seeds. So the
published grids of 48 points cost 52 jobs for five seeds and not 240. The scores of the first seeds influence the
choice; with `search_seeds` equal to the number of seeds, every point is run with every seed.

Each job is a process, because a GPU's memory is certainly free only after its process has ended. A job with a result is
finished and not run again, unless its model is needed and was removed when another point was the best. A result with
settings other than the current ones is an error.
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import xxhash

from rotary_foundry.data_prep.labelled.examples import check_reachable
from rotary_foundry.finetuning.finetune_config import FinetuneConfig, load_finetune_config
from rotary_foundry.finetuning.leaderboard import (
    JOB,
    MODEL,
    POINT,
    RESULT,
    RESULTS,
    best_point,
    point_name,
    read_result,
    read_results,
    read_settings,
    summarise,
    write_json,
)
from rotary_foundry.runs.run_lock import LockFile, RunLock
from rotary_foundry.utils.errors import ConfigurationError, FoundryError

POLL = 0.2  # seconds


def finetune(path: str | Path, overrides: Iterable[str] = ()) -> list[dict]:
    """Run the unfinished jobs of a search.

    Returns:
        One result for each chosen task, as in `results.json`, in the order in which they were run.

    Raises:
        FoundryError: configuration or input is wrong (before any job), or a job failed (after the others have ended).
    """
    config = load_search(path, overrides)
    found = []
    with RunLock(LockFile(config.folder, "out")) as lock:
        for name in config.chosen():
            found.append(_search(config, name, lock))
            others = [result for result in read_results(config.folder) if result["task"] != name]
            write_json(config.folder / RESULTS, [*others, found[-1]])
    return found


def load_search(path: str | Path, overrides: Iterable[str] = ()) -> FinetuneConfig:
    """Read and check a search's YAML, and check in seconds that its data can be downloaded.

    Raises:
        ConfigurationError: names the file and the key.
        DataError: earlier results are damaged.
        NeedsNetwork: a task's data is on the hub, which cannot be reached.
    """
    config = load_finetune_config(path, overrides)
    chosen = config.chosen()
    for name in chosen:
        if (start := config.tasks[name].init_from_task) is not None and start not in chosen:
            _start(config, name, start)
    for name in chosen:
        check_reachable(config.of(name).data)
    return config


def _search(config: FinetuneConfig, name: str, lock: RunLock) -> dict:
    """Run the unfinished jobs of a task; return its entry of `results.json`."""
    from rotary_foundry.finetuning.example_encoding import prepare

    folder = config.folder / name
    data = prepare(config, name, folder / "data")
    for split, count in data["truncated"].items():
        if count:
            print(
                f"{name}: {count:,} of {data['examples'][split]:,} documents of {split} are cut to "
                f"{data['max_seq_len']:,} tokens"
            )
    for sentence in data["undefined"]:
        print(f"{name}: {sentence}")
    shared, grid = job_settings(config, name, data)
    searched = config.seeds[: config.search_seeds if grid[1:] else None]
    _run(config, folder, [shared | point | {"seed": seed} for point in grid for seed in searched], lock)
    best = best_point(folder, grid, searched)
    if best is None:
        raise FoundryError(f"{folder}: the loss became NaN or infinite at every point; set smaller learning rates")
    _run(config, folder, [shared | best | {"seed": seed} for seed in config.seeds], lock, with_models=True)
    for job in folder.glob("*/seed-*"):
        if job.parent.name != point_name(best):
            shutil.rmtree(job / MODEL, ignore_errors=True)
    return summarise(folder, best, len(grid), config.seeds)


def job_settings(config: FinetuneConfig, name: str, data: dict) -> tuple[dict, list[dict]]:
    """Return the settings that all jobs of a task share in their `job.json`, and the points of the grid.

    Args:
        data: the description that `prepare` returned.
    """
    import torch

    task = config.of(name)
    model = config.model if task.init_from_task is None else str(_start(config, name, task.init_from_task))
    shared = {
        **{"task": name, "type": task.type, "metrics": task.metrics, "eval_interval": task.eval_interval},
        **{key: data[key] for key in ("labels", "splits", "tests", "examples", "truncated", "max_seq_len", "digest")},
        "form": task.data.form,
        **{"base_model": config.model, "model": model, "model_digest": _digest(model)},
        **{"new_head": task.init_from_task is not None, "init_from_task": task.init_from_task},
        "tokenizer": config.tokenizer or config.model,
        **{key: getattr(config, key) for key in ("optimizer", "betas", "eps", "t_warmup", "alpha_f", "patience")},
        "precision": config.precision or ("amp_bf16" if torch.cuda.is_available() else "fp32"),
        **{key: getattr(config, key) for key in ("device_train_microbatch_size", "device_eval_batch_size")},
    }
    values = itertools.product(*(getattr(task.search, key) for key in POINT))
    return shared, [dict(zip(POINT, point, strict=True)) for point in values]


def _run(config: FinetuneConfig, folder: Path, jobs: list[dict], lock: RunLock, with_models: bool = False) -> None:
    """Run the jobs without a result; `with_models`: also those with a score but without a model.

    Raises:
        ConfigurationError: an existing result has other settings.
        FoundryError: a job failed, after the jobs beside it have ended; or the lock was lost, and all jobs are stopped.
    """
    waiting: deque[Path] = deque()
    for job in jobs:
        path = folder / point_name(job) / f"seed-{job['seed']}"
        if (path / RESULT).is_file():
            _check_same(path, job)
            if not with_models or (path / MODEL).is_dir() or read_result(path)["score"] is None:
                continue
            (path / RESULT).unlink()
        path.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(path / MODEL, ignore_errors=True)
        (path / JOB).write_text(json.dumps(job, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        waiting.append(path)
    done, total = len(jobs) - len(waiting), len(jobs)
    free = _devices(config.jobs)
    running: dict[subprocess.Popen, tuple[Path, dict, float]] = {}
    failed: list[Path] = []
    with _ended(running):
        while running or (waiting and not failed):
            while waiting and free and not failed:
                path, device = waiting.popleft(), free.pop(0)
                running[_start_job(path, device)] = path, device, time.monotonic()
            time.sleep(POLL)
            lock.check()
            for process in [process for process in running if process.poll() is not None]:
                path, device, began = running.pop(process)
                free.append(device)
                if process.returncode or not (path / RESULT).is_file():
                    failed.append(path)
                    continue
                done += 1
                print(f"{done:>4}/{total} {_line(path)}  {time.monotonic() - began:.0f} s", flush=True)
    if failed:
        log = failed[0] / "log.txt"
        last = (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        raise FoundryError(f"{log}: the job failed: {last}; the same command resumes with the unfinished jobs")


def _line(path: Path) -> str:
    result = read_result(path)
    reached = "the loss became NaN or infinite"
    if result["score"] is not None:
        reached = " ".join(f"{name} {value:.4f}" for name, value in result["metrics"].items())
    return f"{path.parents[1].name} {path.parent.name} {path.name}: {reached}"


def _start_job(path: Path, device: dict[str, str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "rotary_foundry.finetuning.job", str(path), str(os.getpid())]
    with (path / "log.txt").open("wb") as log:
        return subprocess.Popen(
            command, env=os.environ | {"TOKENIZERS_PARALLELISM": "false"} | device, stdout=log, stderr=subprocess.STDOUT
        )


def _devices(jobs: int | None) -> list[dict[str, str]]:
    """Return the environment variables that select a device, one entry for each job that may run in parallel."""
    import torch

    if torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        gpus = visible if visible != [""] else [str(gpu) for gpu in range(torch.cuda.device_count())]
        return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus[:jobs]]
    jobs = jobs or 1
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, len(os.sched_getaffinity(0)) // jobs))
    return [{"OMP_NUM_THREADS": threads} for _ in range(jobs)]


def _check_same(path: Path, job: dict) -> None:
    there = read_settings(path)
    memory = {"device_eval_batch_size"}
    if job["type"] != "token":  # Composer weights microbatches by their texts, not by their words
        memory.add("device_train_microbatch_size")
    for key in sorted((there.keys() | job.keys()) - memory):
        if there.get(key) != job.get(key):
            raise ConfigurationError(
                f"{path}: an existing result has another {key} ({there.get(key)!r}, now {job.get(key)!r}); "
                f"set another folder, out=…, or remove {path.parents[1]}"
            )


def _start(config: FinetuneConfig, name: str, other: str) -> Path:
    """Return the folder of the best model of the task that this one starts from."""
    for result in read_results(config.folder):
        if result["task"] == other:
            return Path(result["model"])
    raise ConfigurationError(
        f"tasks.{name}.init_from_task: {config.folder} has no result of {other} yet; run it too, "
        f"task=[{other},{name}], or start from the model itself, tasks.{name}.init_from_task=null"
    )


def _digest(model: str) -> str | None:
    """Return a digest of a local model's weights, so that results of another model at the same path are not reused."""
    digest = xxhash.xxh3_128()
    for file in sorted(file for suffix in ("safetensors", "bin") for file in Path(model).glob(f"*.{suffix}")):
        with file.open("rb") as stream:
            while block := stream.read(1 << 24):
                digest.update(block)
    return digest.hexdigest() if Path(model).is_dir() else None


@contextmanager
def _ended(running: Mapping[subprocess.Popen, object]) -> Iterator[None]:
    """End the running jobs if this process gets a signal to end."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
