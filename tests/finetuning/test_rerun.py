"""What a search runs, runs again and returns, with the job itself replaced by one whose score is its learning rate."""

import json
import sys
from pathlib import Path

import pytest

from encoder_foundry.finetuning.search import finetune

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
