"""The wheel in an empty environment: its commands work without a checkout."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from uv import find_uv_bin

ROOT = Path(__file__).parents[1]
SOURCES = ("build_backend.py", "pyproject.toml", "README.md", "LICENSE")
SUITES = "from rotary_foundry.evaluation.suites import find_suites; print(len(find_suites(['all'])))"


def run(folder: Path, *command: object) -> str:
    left_out = ("PYTHONPATH", "VIRTUAL_ENV", "UV_PROJECT_ENVIRONMENT")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, as a build leaves files beside the sources."""
    source, wheels = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheels")
    for name in SOURCES:
        shutil.copy(ROOT / name, source)
    for name in ("src", "yamls"):
        shutil.copytree(
            ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__")
        )
    run(source, find_uv_bin(), "build", "--wheel", "--out-dir", wheels, ".")
    return next(wheels.glob("*.whl"))


@pytest.mark.long
def test_every_file_of_the_package_is_in_the_wheel(wheel):
    listed = subprocess.run(["git", "-C", ROOT / "src", "ls-files", "."], capture_output=True, text=True, check=True)
    yamls = subprocess.run(["git", "-C", ROOT, "ls-files", "yamls"], capture_output=True, text=True, check=True)
    files = {*listed.stdout.split(), *(f"rotary_foundry/{file}" for file in yamls.stdout.split())}
    with ZipFile(wheel) as archive:
        assert files - {"rotary_foundry/yamls"} <= set(archive.namelist())


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_an_installed_wheel_plans_a_recipe_and_finds_the_suites(wheel, tmp_path):
    uv, python = find_uv_bin(), tmp_path / "environment/bin/python"
    run(tmp_path, uv, "venv", "--python", sys.executable, python.parents[1])
    pins = ("--constraint", ROOT / "constraints.txt", "--override", ROOT / "overrides.txt")
    run(tmp_path, uv, "pip", "install", "--python", python, *pins, f"rotary-foundry[eval] @ {wheel.as_uri()}")
    package = run(tmp_path, python, "-c", "import rotary_foundry as it; print(*it.__path__)").strip()
    planned = run(tmp_path, python.with_name("rotary-foundry"), "plan", f"{package}/yamls/main/nano.yaml")
    assert "1,474,560" in planned  # tokens of the whole run
    assert int(run(tmp_path, python, "-c", SUITES)) > 1
