"""A search with its real processes: side by side, taken up again, over two tasks of which one starts from the other."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rotary_foundry.finetuning.search import finetune
from rotary_foundry.utils.errors import ConfigurationError, FoundryError

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]  # a job's imports alone are 15 seconds of a core
LINE = re.compile(r"mine (\S+) (seed-\d+): .* (\d+) s$", re.MULTILINE)
COMMAND = str(Path(sys.executable).parent / "rotary-foundry")


@pytest.fixture(scope="module")
def searched(tmp_path_factory, make_model, opinion_files):
    """A finished search over two seeds: its YAML, its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("search")
    yaml = folder / "mine.yaml"
    train, validation = opinion_files
    yaml.write_text(
        f"model: {make_model('bert')}\nout: {folder}/out\nseeds: [1, 2]\n"
        "search: {lr: [1e-2], weight_decay: [1e-6], max_duration: [2ep], global_train_batch_size: [16]}\n"
        "tasks:\n"
        f"  mine: {{data: {{train: {train}, validation: [{validation}]}}}}\n"
        f"  next: {{data: {{train: {train}, validation: [{validation}]}}, init_from_task: mine}}\n"
    )
    run = subprocess.run(
        [COMMAND, "finetune", str(yaml), "task=mine", "jobs=2"], capture_output=True, text=True, timeout=500
    )
    assert run.returncode == 0, run.stderr
    return yaml, folder / "out", run.stdout


def results(folder: Path) -> list[Path]:
    return sorted(folder.rglob("result.json"))


def test_it_ends_with_a_table_and_its_numbers_are_in_a_file(searched):
    _, folder, printed = searched
    (result,) = json.loads((folder / "results.json").read_text())
    assert len(result["scores"]) == 2
    scores = list(result["scores"].values())
    assert result["metrics"]["accuracy"]["mean"] == pytest.approx(sum(scores) / 2)
    assert result["metrics"]["accuracy"]["deviation"] == pytest.approx(abs(scores[0] - scores[1]) / 2**0.5)
    assert f"accuracy {sum(scores) / 2:.4f} ±" in printed
    assert result["versions"]["mosaicml"] and result["examples"] == {"train": 96, "validation": 32}
    assert (Path(result["model"]) / "model.safetensors").is_file()


def test_jobs_run_side_by_side(searched):
    """Each job's start is its end, when its result was written, less the seconds that its line tells."""
    _, folder, printed = searched
    ends = [(folder / f"mine/{point}/{seed}/result.json").stat().st_mtime for point, seed, _ in LINE.findall(printed)]
    starts = [end - int(seconds) for end, (_, _, seconds) in zip(ends, LINE.findall(printed), strict=True)]
    assert len(ends) == 2
    assert max(starts) + 2 < min(ends)  # one after the other: equal, but for the rounding of the seconds


def test_a_finished_search_runs_no_job_again(searched):
    yaml, folder, _ = searched
    before = {path: path.stat().st_mtime_ns for path in results(folder)}
    finetune(yaml, ["task=mine"])
    assert {path: path.stat().st_mtime_ns for path in results(folder)} == before


def test_a_job_that_was_killed_is_run_again_and_a_finished_one_is_not(searched):
    """All of the search is killed, its processes with it, when one job of two is done."""
    yaml, folder, _ = searched
    copy = folder.parent / "killed"
    shutil.copytree(folder, copy)
    done, killed = results(copy)
    killed.unlink()
    before = done.stat().st_mtime_ns
    run = subprocess.Popen([COMMAND, "finetune", str(yaml), "task=mine", f"out={copy}"], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while (killed.parent / "model").exists() and time.monotonic() < deadline:  # its start removes the last one's model
        time.sleep(0.05)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    assert not killed.exists()
    finetune(yaml, ["task=mine", f"out={copy}"])
    assert killed.is_file() and done.stat().st_mtime_ns == before


def test_a_result_of_other_settings_is_not_taken_for_this_one(searched):
    yaml, _, _ = searched
    with pytest.raises(
        ConfigurationError, match=r"seed-1: an existing result has another patience \(None, now '1ep'\)"
    ):
        finetune(yaml, ["task=mine", "patience=1ep"])


def test_a_task_starts_from_the_best_model_of_another(searched):
    yaml, folder, _ = searched
    with pytest.raises(ConfigurationError, match=r"has no result of mine yet; run it too, task=\[mine,next\]"):
        finetune(yaml, ["task=next", f"out={folder.parent}/empty"])
    mine, following = finetune(yaml, ["task=[next,mine]", "seeds=[1]", f"out={folder}"])
    job = json.loads((Path(following["model"]).parent / "job.json").read_text())
    assert job["model"] == mine["model"] and job["new_head"]


def test_a_job_that_fails_is_named_with_its_last_words(searched):
    yaml, folder, _ = searched
    with pytest.raises(FoundryError, match=r"seed-1/log\.txt: the job failed: .*Precision; the same command resumes"):
        finetune(yaml, ["task=mine", "precision=fp7", f"out={folder.parent}/failed"])


@pytest.mark.timeout(3600)
def test_a_search_of_twenty_points_leaves_no_process_and_its_memory_does_not_grow(searched):
    """Workers leaked over a sweep (kkkamur07/indic-modernBERT, learnings, 8)."""
    yaml, folder, _ = searched
    out, rates = folder.parent / "twenty", [f"{number}e-4" for number in range(1, 21)]
    settings = [f"out={out}", f"search.lr=[{', '.join(rates)}]", "search.max_duration=[1ep]", "seeds=[1]", "jobs=2"]
    run = subprocess.Popen([COMMAND, "finetune", str(yaml), "task=mine", *settings], stdout=subprocess.PIPE, text=True)
    search, seen = psutil.Process(run.pid), []
    for line in run.stdout:
        if LINE.search(line):
            seen.append((search.memory_info().rss, len(search.children())))
    assert run.wait() == 0
    assert len(results(out)) == 20 <= len(seen)
    sizes, children = zip(*seen, strict=True)
    assert max(children) <= 2
    assert max(sizes[3:]) < sizes[2] + 30e6  # bytes
    assert [process for process in psutil.process_iter(["cmdline"]) if str(out) in str(process.info["cmdline"])] == []
