"""Which device each job of a search gets, with torch's answers about GPUs and the job itself replaced."""

import json
import os
import sys
from types import SimpleNamespace

import pytest
import torch

from rotary_foundry.finetuning import search
from rotary_foundry.runs.run_lock import LockFile, RunLock

JOB = """#!/bin/sh
began=$(date +%s.%N)
sleep 0.5
cat > "$3/result.json" <<END
{"score": null, "gpu": "$CUDA_VISIBLE_DEVICES", "began": $began, "ended": $(date +%s.%N)}
END
"""
POINT = {"lr": 1e-5, "weight_decay": 1e-6, "max_duration": "1ep", "global_train_batch_size": 16}


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """Runs three jobs that only tell their device, on a machine of two GPUs; returns their results by seed."""
    job = tmp_path / "job.sh"
    job.write_text(JOB)
    job.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(job))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def run(jobs: int | None = None) -> list[dict]:
        with RunLock(LockFile(tmp_path, "out")) as lock:
            search._run(SimpleNamespace(jobs=jobs), tmp_path, [POINT | {"seed": seed} for seed in (1, 2, 3)], lock)
        return [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*/seed-*/result.json"))]

    return run


def overlap(one: dict, other: dict) -> bool:
    return max(one["began"], other["began"]) < min(one["ended"], other["ended"])


def test_two_jobs_at_a_time_have_a_gpu_each(ran):
    first, second, third = ran()
    assert {first["gpu"], second["gpu"]} == {"0", "1"}
    assert overlap(first, second)
    for one in (first, second):
        assert not (overlap(one, third) and one["gpu"] == third["gpu"])
    assert third["gpu"] in ("0", "1")


def test_gpus_are_those_that_are_visible(ran, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert {result["gpu"] for result in ran()} == {"4", "6"}


def test_of_more_gpus_than_jobs_the_first_are_taken(ran):
    assert [result["gpu"] for result in ran(jobs=1)] == ["0", "0", "0"]


def test_jobs_on_a_cpu_share_its_cores(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert search._devices(2) == [{"OMP_NUM_THREADS": "4"}] * 2
    assert search._devices(None) == [{"OMP_NUM_THREADS": "8"}]
