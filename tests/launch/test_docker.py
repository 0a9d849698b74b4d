"""The image, without an engine to build it: its Dockerfile read, and its install steps run in an empty environment.

What only the image can show is not tested: that its base is there, that it has g++, that FlashAttention's wheel fits,
that the user is made.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from dockerfile_parse import DockerfileParser
from packaging.specifiers import SpecifierSet

REPOSITORY = Path(__file__).parents[2]
SECRET = re.compile(r"(?i)key|token|secret|passw|credential")


@pytest.fixture(scope="module")
def steps() -> list[tuple[str, str]]:
    """Instruction and value, in order; continued lines are joined."""
    parser = DockerfileParser(path=str(REPOSITORY / "Dockerfile"), cache_content=True)
    return [(step["instruction"], step["value"]) for step in parser.structure if step["instruction"] != "COMMENT"]


def of(steps: list[tuple[str, str]], instruction: str) -> list[str]:
    return [value for name, value in steps if name == instruction]


def sent() -> list[Path]:
    """What .dockerignore lets an engine see of this checkout: it leaves everything out, and then names what stays."""
    everything, *rules = [
        line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line and line[0] != "#"
    ]
    assert everything == "*"
    named = [REPOSITORY / rule[1:] for rule in rules if rule.startswith("!")]
    left_out = [rule for rule in rules if not rule.startswith("!")]
    files = [path for entry in named for path in ([entry] if entry.is_file() else sorted(entry.rglob("*")))]
    return [
        path
        for path in files
        if path.is_file() and not any(parent.match(rule) for parent in (path, *path.parents) for rule in left_out)
    ]


def test_the_base_is_a_plain_python_that_the_project_supports_and_the_one_that_skypilot_starts(steps):
    (base,) = of(steps, "FROM")
    (version,) = re.findall(r"^python:(3\.\d+)-slim-", base)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert SpecifierSet(project["requires-python"]).contains(version)
    task = yaml.safe_load((REPOSITORY / "launch/skypilot/base.yaml").read_text())
    assert task["resources"]["image_id"] == f"docker:{base}"


def test_the_image_runs_as_an_unprivileged_user(steps):
    *_, (last, user) = steps
    assert last == "USER"
    assert user.split(":")[0] not in ("root", "0")


def test_no_key_is_built_in_and_what_is_not_named_is_not_even_sent_to_the_engine(steps):
    for instruction in ("ARG", "ENV"):
        assert not [value for value in of(steps, instruction) if SECRET.search(value)]
    folders = {"data_prep", "launch", "src", "yamls"}
    files = {"LICENSE", "README.md", "build_backend.py", "constraints.txt", "overrides.txt", "pyproject.toml"}
    assert {path.relative_to(REPOSITORY).parts[0] for path in sent()} == folders | files


def test_what_the_commands_read_is_in_the_image():
    names = {str(path.relative_to(REPOSITORY)) for path in sent()}
    assert {"launch/__main__.py", "data_prep/__main__.py", "yamls/main/base.yaml", "constraints.txt"} <= names
    assert "src/rotary_foundry/cli.py" in names
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests")]


def runs(python: str) -> bool:
    """A name on PATH may stand for a Python that is not installed (pyenv's do)."""
    found = shutil.which(python)
    return found is not None and subprocess.run([found, "--version"], capture_output=True).returncode == 0


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_the_install_steps_run_in_an_empty_environment_and_make_the_commands_with_the_pins(steps, tmp_path):
    """On CPU, by this machine's Python, and without FlashAttention."""
    python = next(name for name in ("python3.12", sys.executable) if runs(name))  # the image's, where it is here
    work, environment = tmp_path / "rotary-foundry", tmp_path / "venv"
    subprocess.run([python, "-m", "venv", str(environment)], check=True)
    work.mkdir()
    variables = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")
    }
    variables["PATH"] = f"{environment}/bin:{variables['PATH']}"
    context, ran = sent(), []

    def run(command: list[str]) -> str:
        done = subprocess.run(command, cwd=work, env=variables, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout

    for instruction, value in steps:
        if instruction == "ARG":
            name, _, default = value.partition("=")
            variables[name] = "" if name.startswith("FLASH_ATTN") else default
        elif instruction == "COPY":
            *sources, _ = value.split()
            wanted = context if sources == ["."] else [REPOSITORY / source for source in sources]
            for path in wanted:
                (work / path.relative_to(REPOSITORY)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, work / path.relative_to(REPOSITORY))
        elif instruction == "RUN" and "useradd" not in value and "apt-get" not in value:
            ran.append(value)
            run(["bash", "-eo", "pipefail", "-c", value])
    assert len(ran) == len(of(steps, "RUN")) - 2
    assert "pretrain" in run(["rotary-foundry", "plan", "yamls/main/base.yaml"])
    told = run(["rotary-foundry", "doctor"])
    assert f"✓ pins           as in {work / 'constraints.txt'}" in told
    assert "✓ packages" in told
    assert run(["composer", "-n", "1", "launch", "--help"]).startswith("usage: composer [-n PROCESSES] launch")
