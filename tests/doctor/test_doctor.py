"""The whole command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rotary_foundry.doctor import examine
from rotary_foundry.doctor.examine import _machine, _together
from rotary_foundry.doctor.finding import BAD, bad, good

from .conftest import REPOSITORY, doctor, on_own_machine

BASE = REPOSITORY / "yamls/main/base.yaml"
NOBODY = "http://127.0.0.1:1"


def lines(output: str) -> dict[str, list[str]]:
    """The words of every mark's lines."""
    found: dict[str, list[str]] = {}
    for line in output.splitlines():
        found.setdefault(line[:1], []).append(line[2:].strip())
    return found


@pytest.mark.long
def test_on_a_machine_like_a_bare_container_everything_that_would_fail_is_named_with_its_remedy(tmp_path):
    """A container's 64 MB of /dev/shm, a disk of a megabyte, no data, a store and a W&B that nobody answers for."""
    runs = tmp_path / "runs"
    runs.mkdir()
    arguments = [BASE, f"runs_folder={runs}", "save_folder=s3://bucket/runs"]
    arguments.append("loggers.wandb={project: encoders, init_kwargs: {settings: {api_key: planted-in-an-override}}}")
    run = on_own_machine(
        {"/dev/shm": "64m", str(runs): "1m"},
        doctor(*arguments),
        TMPDIR=str(tmp_path),
        AWS_ENDPOINT_URL=NOBODY,
        AWS_ACCESS_KEY_ID="any",
        AWS_SECRET_ACCESS_KEY="planted-secret",
        WANDB_API_KEY="planted-key",
        WANDB_BASE_URL=NOBODY,
    )
    assert run.returncode == 1, run.stderr
    marked = lines(run.stdout)
    expected = ("/dev/shm", "runs", "data", "save_folder", "W&B")
    assert [line.split()[0] for line in marked["✗"]] == list(expected)
    shm, disk, *_ = marked["✗"]
    assert "67.1 MB free; needed: 481 MB for the loaders" in shm
    assert "1.05 MB free; needed: 19.8 GB (11 checkpoints of 1.8 GB)" in disk
    remedies = run.stdout.count("→")
    assert remedies == len(marked["✗"]) + len(marked["!"])
    assert "docker run --shm-size=1g" in run.stdout
    command = f"composer -n 2 -c rotary-foundry doctor {BASE} runs_folder={runs} save_folder=s3://bucket/runs "
    assert f"{command}'loggers.wandb={{" in run.stdout.replace(str(Path(sys.executable).parent) + "/", "")
    assert run.stdout.splitlines()[-1].startswith("5 in the way of a run")
    assert not [line for line in run.stdout.splitlines() if line.endswith(" ")]
    assert "planted" not in run.stdout + run.stderr


def test_a_wrong_recipe_is_one_line_and_status_2_before_torch_is_imported(recipe_file, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('torch was imported')")
    before = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": before}
    run = subprocess.run(doctor(recipe_file, "seeed=1"), capture_output=True, text=True, timeout=60, env=environment)
    assert run.returncode == 2
    assert run.stderr == "error: argument 'seeed=1': unknown key 'seeed'; did you mean 'seed'?\n"
    assert run.stdout == ""
    bare = subprocess.run(doctor(recipe_file), capture_output=True, text=True, timeout=60, env=environment)
    assert bare.returncode == 1
    assert "✗ torch          cannot be imported: torch was imported" in bare.stdout


def test_a_check_that_breaks_down_is_a_line_and_the_others_go_on(recipe, monkeypatch):
    def broken(*_):
        yield good("data", "so far")
        raise KeyError("raw_data")

    before = list(_machine(recipe, clean=False))
    monkeypatch.setattr(examine, "check_data", broken)
    monkeypatch.setattr(examine, "check_packages", broken)
    found = list(_machine(recipe, clean=False))
    said = [(finding.mark, finding.subject, finding.said) for finding in found if finding.mark == BAD]
    assert said == [(BAD, subject, "this check failed: KeyError: 'raw_data'") for subject in ("packages", "data")]
    untouched = {"GPUs", "attention", "leftovers", "/dev/shm", "runs"}
    assert [finding.subject for finding in found if finding.subject in untouched] == [
        finding.subject for finding in before if finding.subject in untouched
    ]


def test_what_all_nodes_say_alike_is_one_line_and_what_one_node_says_bears_its_name():
    driver = bad("GPUs", "none", "a driver")
    machines = [(f"node-{n}", [good("pins", f"{n} GB"), driver if n == 2 else good("GPUs", "8")]) for n in range(4)]
    told = [(finding.subject, finding.mark, finding.said) for finding in _together(machines)]
    assert told == [
        ("pins", "✓", "all 4 nodes: 0 GB"),
        ("GPUs", "✓", "node-0 and 2 more: 8"),
        ("GPUs", "✗", "node-2: none"),
    ]


@pytest.mark.long
def test_under_composer_the_ranks_try_the_collectives_and_rank_0_alone_prints(recipe_file, tmp_path):
    composer = Path(sys.executable).parent / "composer"
    command = [str(composer), "-n", "2", "-c", *doctor(recipe_file, "data.num_workers=2")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    run = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stdout + run.stderr
    (line,) = [line for line in run.stdout.splitlines() if "collectives" in line]
    assert line.startswith("✓")
    assert "gloo over 2 ranks: sums are right" in line
    assert sum("packages" in line for line in run.stdout.splitlines()) == 1


@pytest.mark.long
def test_a_node_that_does_not_come_is_named_by_the_one_that_waited(recipe_file, tmp_path):
    """The other node of two has nobody: the store that the ranks meet in is not there."""
    composer = Path(sys.executable).parent / "composer"
    place = ["--world_size", "2", "--node_rank", "1", "--master_addr", "127.0.0.1", "--master_port", "1"]
    short = "from rotary_foundry.doctor import collectives, examine; collectives.MEETING_SECONDS = 3.0; "
    script = tmp_path / "short.py"
    script.write_text(f"{short}raise SystemExit(not examine.examine(None, (), False))\n")
    command = [str(composer), "-n", "1", *place, str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    run = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=240)
    assert run.returncode == 1
    (line,) = [line for line in run.stdout.splitlines() if "collectives" in line]
    assert line.startswith("✗")
    assert "127.0.0.1" in line
    assert "--master_addr" in run.stdout
