"""The same stages by several processes here, by Ray for real, and by Slurm up to the call of sbatch."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import dill
import psutil
import pytest
from datatrove.pipeline.base import PipelineStep

from rotary_foundry.data_prep import executors, readers, stages
from rotary_foundry.data_prep.corpus_config import load_corpus_config
from rotary_foundry.data_prep.pipeline import prepare
from rotary_foundry.data_prep.readers import listing
from rotary_foundry.data_prep.statistics import Statistics
from rotary_foundry.utils.errors import ConfigurationError, DataError
from tests.data_prep.small_corpus import content, sentences, write_jsonl

SLURM = {"slurm": {"time": "01:00:00", "partition": "cpu", "workers": 3, "venv_path": "/opt/venv/bin/activate"}}


@pytest.fixture
def parted(config, tmp_path, monkeypatch):
    """The small corpus with a source of several parts."""
    monkeypatch.setattr(listing, "PART_BYTES", 240_000)
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(6):
        write_jsonl(folder / f"{number}.jsonl", sentences(10 + number, 30))
    return replace(config, sources=config.sources | {"many": readers.SourceConfig("jsonl", str(folder))})


def test_any_number_of_processes_gives_the_same_bytes(parted, tmp_path):
    prepare(parted)
    prepare(replace(parted, out=str(tmp_path / "two"), executor={"local": {"workers": 2}}))
    one = content(Path(parted.out))
    assert one == content(tmp_path / "two")
    assert "many/1024/train/00001/shard.00000.mds.zstd" in one


RAY = {"ray": {"workers": 2, "tasks_per_job": 20, "mem_per_cpu_gb": 0.5}}  # a job is a process, seconds to start


@pytest.fixture
def short_folder(monkeypatch):
    """Ray's sockets lie deep in its folder, and the path of a socket may have 107 bytes."""
    with TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield


@pytest.mark.usefixtures("short_folder")
@pytest.mark.long  # a minute, nearly all of it until Ray and its dashboard have started
def test_ray_gives_the_same_bytes(parted, tmp_path):
    prepare(parted)
    prepare(replace(parted, out=str(tmp_path / "ray"), executor=RAY))
    assert content(Path(parted.out)) == content(tmp_path / "ray")


@pytest.mark.usefixtures("short_folder")
@pytest.mark.long  # seconds as a rule, and once five minutes, beside other work
def test_a_task_that_fails_on_ray_is_told_in_its_own_words(parted, tmp_path):
    (tmp_path / "many" / "3.jsonl").write_text('{"body": "no text column"}\n')
    with pytest.raises(DataError, match=r"3\.jsonl.*no column 'text'"):
        prepare(replace(parted, executor=RAY))


@pytest.fixture
def submitted(tmp_path, monkeypatch) -> Path:
    """A folder that the scripts given to `sbatch` go to, each with its arguments. What Slurm does is not done here."""
    jobs, commands = tmp_path / "jobs", tmp_path / "bin"
    jobs.mkdir()
    commands.mkdir()
    scripts = {
        "sbatch": f'n=$(ls {jobs} | wc -l); for last; do true; done; (echo "$@"; cat "$last") > {jobs}/$n; '
        'echo "Submitted batch job $n"',
        "scontrol": 'echo "$3"',
        "squeue": "true",  # of these jobs none is left
    }
    for name, script in scripts.items():
        (commands / name).write_text(f"#!/bin/bash\n{script}\n")
        (commands / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    return jobs


def test_slurm_gets_a_job_array_for_each_stage_and_its_jobs_give_the_same_bytes(
    parted, tmp_path, submitted, monkeypatch
):
    prepare(parted)
    on_slurm = replace(parted, out=str(tmp_path / "slurm"), executor=SLURM)
    assert not prepare(on_slurm)
    jobs = [path.read_text() for path in sorted(submitted.iterdir(), key=lambda path: int(path.name))]
    stages = [job for job in jobs if "launch_pickled_pipeline" in job]
    parts, sources = len(list((tmp_path / ".slurm-work/parts").iterdir())), len(parted.sources)
    tasks = {"documents": parts, "duplicates": 1, "tokenizer": 1, "shards": parts + sources, "finish": 1}
    for job, (name, count) in zip(stages, tasks.items(), strict=True):
        assert f"#SBATCH --array=0-{count - 1}%3" in job
        assert f"#SBATCH --job-name=slurm-{name}" in job
        assert "#SBATCH --partition=cpu" in job
        assert "#SBATCH --kill-on-invalid-dep=yes" in job
        assert "source /opt/venv/bin/activate" in job
    assert "--dependency" not in stages[0].splitlines()[0]
    assert all("--dependency=afterok:" in job.splitlines()[0] for job in stages[1:])

    # What `launch_pickled_pipeline` does in each task of the arrays, in the order of their dependencies.
    monkeypatch.setenv("SLURM_NODELIST", "node-1")
    for stage, count in tasks.items():
        for task in range(count):
            monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
            with open(tmp_path / ".slurm-work" / "logs" / stage / "executor.pik", "rb") as pickled:
                dill.load(pickled).run()
    assert content(Path(parted.out)) == content(tmp_path / "slurm")
    assert not (tmp_path / ".slurm-work/errors").exists()
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID")
    assert prepare(on_slurm)  # nothing to do, and what was kept is tidied away
    assert not (tmp_path / ".slurm-work").exists()


def test_jobs_are_not_submitted_again_while_the_first_are_there(config, tmp_path, submitted):
    on_slurm = replace(config, executor=SLURM)
    prepare(on_slurm)
    jobs = len(list(submitted.iterdir()))
    (tmp_path / "bin" / "squeue").write_text('#!/bin/bash\necho "$@"\n')
    with pytest.raises(
        DataError, match=r"still queued or running \(0, 2, 4, 6, 8\); wait for them to end, or cancel them with scancel"
    ):
        prepare(on_slurm)
    assert len(list(submitted.iterdir())) == jobs


def test_a_stage_does_not_begin_on_what_the_one_before_has_not_finished(config, tmp_path, submitted, monkeypatch):
    """As where an array before the last of a long chain has failed."""
    prepare(replace(config, executor=SLURM))
    monkeypatch.setenv("SLURM_NODELIST", "node-1")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    logs = tmp_path / ".out-work" / "logs"
    with (
        open(logs / "documents" / "executor.pik", "rb") as first,
        open(logs / "duplicates" / "executor.pik", "rb") as next_,
    ):
        dill.load(first).run()
        with pytest.raises(DataError, match="documents: 1 of 2 tasks have not finished"):
            dill.load(next_).run()


def test_what_failed_on_slurm_is_told_when_the_command_is_given_again(parted, tmp_path, submitted, monkeypatch, caplog):
    (tmp_path / "many" / "0.jsonl").write_text('{"body": "no text column"}\n')
    on_slurm = replace(parted, executor=SLURM)
    prepare(on_slurm)
    monkeypatch.setenv("SLURM_NODELIST", "node-1")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    with open(tmp_path / ".out-work/logs/documents/executor.pik", "rb") as pickled, pytest.raises(DataError):
        dill.load(pickled).run()
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID")
    prepare(on_slurm)
    assert "documents: failed in the last run: " in caplog.text
    assert "0.jsonl:1: no column 'text'" in caplog.text


def test_without_slurm_it_says_so(config, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DataError, match="command 'sbatch' not found"):
        prepare(replace(config, executor=SLURM))


class Killed(PipelineStep):
    """Killed in its second task, as by the kernel for its memory."""

    def run(self, data=None, rank=0, world_size=1):
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return iter(())


def test_a_worker_that_is_killed_ends_the_preparation_with_a_line(tmp_path):
    executor = executors.LocalExecutor([Killed()], tasks=3, workers=2, logging_dir=str(tmp_path))
    with pytest.raises(DataError, match="a worker process was killed, perhaps because memory ran out"):
        executor.run()


class Waits(PipelineStep):
    """Writes the number of its process into a folder and waits."""

    def __init__(self, folder: str):
        super().__init__()
        self.folder = folder

    def run(self, data=None, rank=0, world_size=1):
        Path(self.folder, f"{rank}.process").write_text(str(os.getpid()))
        time.sleep(200)
        return iter(())


WAIT = """
import sys
from rotary_foundry.data_prep.executors import LocalExecutor
from tests.data_prep.test_executors import Waits

LocalExecutor([Waits(sys.argv[1])], tasks=2, workers=2, logging_dir=sys.argv[1]).run()
"""


def test_the_workers_of_a_killed_preparation_end_with_it(tmp_path):
    """Otherwise they would go on writing beside those of the next start."""
    killed = subprocess.Popen([sys.executable, "-c", WAIT, str(tmp_path)])
    while len(numbers := [path.read_text() for path in tmp_path.glob("*.process")]) < 2 or "" in numbers:
        assert killed.poll() is None
        time.sleep(0.1)
    workers = [psutil.Process(int(number)) for number in numbers]
    killed.kill()
    killed.wait()
    _, alive = psutil.wait_procs(workers, timeout=30)
    for worker in alive:
        worker.kill()
    assert not alive


@pytest.mark.parametrize(
    ("executor", "complaint"),
    [
        ({"local": {}, "ray": {}}, "one of local, slurm, ray"),
        ({"dask": {}}, "one of local, slurm, ray"),
        ({"local": {"worker": 2}}, "unknown option 'worker'"),
        ({"local": {"tasks": 2}}, "unknown option 'tasks'"),
        ({"local": 2}, "local: expected options by name, .* got 2"),
        ({"local": {"workers": 0}}, "workers: expected an integer of at least 1, got 0"),
        ({"local": {"workers": "two"}}, "workers: expected an integer of at least 1, got two"),
        ({"slurm": {"time": "1:00:00"}}, "'partition' is missing"),
    ],
)
def test_an_executor_that_cannot_be_made_is_refused(executor, complaint):
    with pytest.raises(ConfigurationError, match=complaint):
        executors.check_executor(executor)


def test_what_was_done_before_an_error_is_not_done_again(parted, tmp_path, monkeypatch):
    path = tmp_path / "many" / "1.jsonl"
    path.write_text("{broken\n" * 3 + path.read_text())
    strict = replace(parted, max_bad_documents=2)
    with pytest.raises(DataError, match=r"source 'many': 3 documents cannot be read.*1\.jsonl:1"):
        prepare(strict)
    assert not Path(parted.out).exists()
    read_again = []
    read = readers.read
    monkeypatch.setattr(stages, "read", lambda source, *rest: read_again.append(source) or read(source, *rest))
    prepare(replace(strict, max_bad_documents=3))
    assert len(read_again) == len(readers.parts(parted.sources["many"]))  # the two sources before it were kept
    bad = (Path(parted.out) / "bad_input.txt").read_text().splitlines()
    assert [line.split(": ")[:2] for line in bad] == [["many", f"{path}:{line}"] for line in (1, 2, 3)]
    assert Statistics.read(parted.out).sources["many"].left_out == {"bad input": 3}


def run_jobs(jobs: Path, work: Path, monkeypatch) -> None:
    """Do what `launch_pickled_pipeline` does in every task of the arrays, in the order in which they were submitted."""
    monkeypatch.setenv("SLURM_NODELIST", "node-1")
    for job in sorted(jobs.iterdir(), key=lambda path: int(path.name)):
        script = job.read_text()
        if "launch_pickled_pipeline" not in script:
            continue
        (stage,) = re.findall(rf"{work}/logs/([a-z-]+)/executor\.pik", script)
        (last,) = re.findall(r"#SBATCH --array=0-(\d+)", script)
        (offset,) = re.findall(r"RUN_OFFSET=(\d+)", script.splitlines()[0])
        monkeypatch.setenv("RUN_OFFSET", offset)
        with open(work / "logs" / stage / "executor.pik", "rb") as pickled:
            executor = dill.load(pickled)
        for task in range(int(last) + 1):
            monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
            executor.run()
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_more_parts_than_an_array_of_slurm_takes_are_all_prepared(config, tmp_path, submitted, monkeypatch):
    """huggingface/datatrove#238, #235: of more than 1,001 tasks, those of the first array only were waited for."""
    monkeypatch.setattr(listing, "part_bytes", lambda _: 0)  # a part for each file
    texts, sources = sentences(5, 2001), {}
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        for number in range(667):
            write_jsonl(tmp_path / name / f"{number:03}.jsonl", [texts.pop()])
        sources[name] = readers.SourceConfig("jsonl", str(tmp_path / name))
    on_slurm = replace(config, sources=sources, row_lengths=[64], executor=SLURM)
    prepare(on_slurm)
    scripts = [path.read_text() for path in submitted.iterdir()]
    arrays = [script for script in scripts if "launch_pickled_pipeline" in script and "-documents" in script]
    assert sorted(re.findall(r"--array=0-(\d+)", " ".join(arrays))) == ["1000", "1000"]
    run_jobs(submitted, tmp_path / ".out-work", monkeypatch)
    counts = Statistics.read(on_slurm.out).sources
    assert {name: each.train.documents + each.validation.documents for name, each in counts.items()} == {
        "one": 667,
        "two": 667,
        "three": 667,
    }


def test_a_task_that_is_marked_as_done_and_has_no_result_is_named(config, tmp_path, submitted, monkeypatch):
    """huggingface/datatrove#291: a completion is no proof of a result."""
    prepare(replace(config, executor=SLURM))
    work = tmp_path / ".out-work"
    monkeypatch.setenv("SLURM_NODELIST", "node-1")
    for stage, task in (("documents", 0), ("documents", 1), ("duplicates", 0), ("tokenizer", 0)):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
        with open(work / "logs" / stage / "executor.pik", "rb") as pickled:
            dill.load(pickled).run()
    (work / "documents/train/00001.parquet").unlink()
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    with open(work / "logs/shards/executor.pik", "rb") as pickled, pytest.raises(DataError) as error:
        dill.load(pickled).run()
    assert "documents/train/00001.parquet" in str(error.value)


KILL_IN_A_STAGE = """
import os, signal, sys
from datatrove.pipeline import dedup
from rotary_foundry.data_prep.corpus_config import load_corpus_config
from rotary_foundry.data_prep.pipeline import prepare

step = getattr(dedup, sys.argv[2])
run = step.run

def killed(self, *arguments, **named):
    found = run(self, *arguments, **named)
    list(found or ())
    os.kill(os.getpid(), signal.SIGKILL)  # its files are written, and the task is not marked as done

step.run = killed
prepare(load_corpus_config(sys.argv[1]))
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("step", "folder"),
    [
        ("MinhashDedupSignature", "signatures"),
        ("MinhashDedupBuckets", "pairs"),
        ("MinhashDedupCluster", "clusters"),
    ],
)
def test_a_stage_of_minhash_that_is_killed_is_done_again_whatever_it_left(config, tmp_path, step, folder):
    """huggingface/datatrove#301: a half-written signature file was read by the next stage."""
    texts = sentences(5, 60)
    near = [f"{text} and once more" for text in texts[:20]]
    path = write_jsonl(tmp_path / "a.jsonl", texts + near)
    content_of = {
        "sources": {"mine": {"reader": "jsonl", "path": str(path)}},
        "tokenizer": {"train": {"vocab_size": 320}},
        "row_lengths": [64],
        "validation": 0.2,
        "deduplication": {"minhash": {"language": "en"}},
        "executor": {"local": {"workers": 1}},
    }
    for name in ("undisturbed", "killed"):
        (tmp_path / f"{name}.yaml").write_text(json.dumps(content_of | {"out": str(tmp_path / name)}))
    prepare(load_corpus_config(tmp_path / "undisturbed.yaml"))
    command = [sys.executable, "-c", KILL_IN_A_STAGE, str(tmp_path / "killed.yaml"), step]
    killed = subprocess.run(command, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    left = [file for file in (tmp_path / ".killed-work/minhash" / folder).rglob("*") if file.is_file()]
    assert left
    for file in left:
        file.write_bytes(file.read_bytes()[:-5])  # as where the end was not on the disk yet
    prepare(load_corpus_config(tmp_path / "killed.yaml"))
    outcomes = [content(tmp_path / name) for name in ("undisturbed", "killed")]
    assert outcomes[0] == outcomes[1]
