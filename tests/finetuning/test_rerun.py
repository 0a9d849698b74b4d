"""What a search runs, runs again and returns, with the job itself replaced by one whose score is its learning rate."""

import json
import os
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from rotary_foundry.finetuning import search as finetuning_search
from rotary_foundry.finetuning.search import finetune
from rotary_foundry.runs.run_lock import LOCK, LockFile, RunLock
from rotary_foundry.utils.errors import ConfigurationError, FoundryError

JOB = """#!/bin/sh
echo >> "$3/ran"
score=$(sed -n 's/.*"lr": \\([^,]*\\),/\\1/p' "$3/job.json")
case "$3" in *seed-9) score=null;; *) mkdir "$3/model";; esac
cat > "$3/result.json" <<END
{"score": $score, "metrics": {"accuracy": $score}, "device": "cpu", "versions": {}}
END
"""


@pytest.fixture
def search(write_yaml, tmp_path, monkeypatch):
    """Runs a search over `mine` and `next`, which starts from it; seed 9 diverges at every rate."""
    job = tmp_path / "job.sh"
    job.write_text(JOB)
    job.chmod(0o755)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    yaml = write_yaml()
    data = yaml.read_text().rpartition("data: ")[2]
    yaml.write_text(f"{yaml.read_text()}  next:\n    init_from_task: mine\n    data: {data}")

    def run(*overrides: str) -> list[dict]:
        with monkeypatch.context() as patched:
            patched.setattr(sys, "executable", str(job))
            return finetune(yaml, overrides)

    return run


def runs(folder: Path) -> dict[str, int]:
    """How often each job of `mine` was run."""
    files = folder.glob("out/mine/*/seed-*/ran")
    return {f"{file.parents[1].name.split(',')[0]} {file.parent.name}": len(file.read_text()) for file in files}


def test_the_results_are_those_of_the_tasks_chosen_in_the_order_of_their_running(search, tmp_path):
    assert [result["task"] for result in search("task=[next,mine]")] == ["mine", "next"]
    assert [result["task"] for result in search("task=next")] == ["next"]
    assert len(json.loads((tmp_path / "out/results.json").read_text())) == 2


def test_a_job_whose_model_was_removed_is_run_again_when_its_point_is_the_best(search, tmp_path):
    """And one that diverged, which never had a model, is not."""
    search("task=mine", "seeds=[1,9]", "search.lr=[0.1,0.2]")
    assert runs(tmp_path) == {"lr=0.1 seed-1": 1, "lr=0.2 seed-1": 1, "lr=0.2 seed-9": 1}
    for _ in range(2):
        (result,) = search("task=mine", "seeds=[1,9]", "search.lr=[0.05,0.1]")
        assert Path(result["model"]).is_dir()
    again = {"lr=0.05 seed-1": 1, "lr=0.1 seed-1": 2, "lr=0.1 seed-9": 1}
    assert runs(tmp_path) == again | {"lr=0.2 seed-1": 1, "lr=0.2 seed-9": 1}


def test_less_memory_makes_no_other_result_but_of_labels_of_words(search, tmp_path):
    """Composer weights microbatches by their texts, and each loss is the mean over the words of one."""
    more, less = ([f"device_{key}={size}" for key in ("train_microbatch_size", "eval_batch_size")] for size in (16, 4))
    search("task=mine", *more)
    search("task=mine", *less)
    assert set(runs(tmp_path).values()) == {1}
    words = tmp_path / "words.conll"
    words.write_text("Anna B-PER\nslept O\n")
    token = ["task=mine", "tasks.mine.type=token", f"tasks.mine.data={{train: {words}, validation: [{words}]}}"]
    token.append(f"out={tmp_path}/words")
    search(*token, *more)
    search(*token, more[0], less[1])
    with pytest.raises(ConfigurationError, match=r"another device_train_microbatch_size \(16, now 4\)"):
        search(*token, *less)


def test_a_search_that_moves_to_a_gpu_is_refused_for_its_precision(search, monkeypatch):
    search("task=mine")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(
        ConfigurationError, match=r"an existing result has another precision \('fp32', now 'amp_bf16'\)"
    ):
        search("task=mine")
    search("task=mine", "precision=fp32")


def test_a_second_search_in_the_same_folder_is_refused_before_it_runs_a_job(search, tmp_path):
    with (
        RunLock(LockFile(tmp_path / "out", "out")),
        pytest.raises(ConfigurationError, match=rf"'out': .*out: process {os.getpid()} on .* is at work there"),
    ):
        search("task=mine")
    assert not runs(tmp_path)


def test_a_search_that_has_lost_its_folder_stops_and_writes_no_result(search, tmp_path, monkeypatch):
    monkeypatch.setattr(finetuning_search, "RunLock", partial(RunLock, gone_after=0))  # which looks at every check
    monkeypatch.setattr(finetuning_search.time, "sleep", lambda _: (tmp_path / "out" / LOCK).unlink(missing_ok=True))
    with pytest.raises(FoundryError, match=r"out/lock\.json: was removed while this process held it"):
        search("task=mine")
    assert not (tmp_path / "out/results.json").exists()
