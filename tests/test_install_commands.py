"""How this project is installed, wherever that is said."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rotary_foundry.utils.installing import install_command

REPOSITORY = Path(__file__).parents[1]
OPTIONS = "-c constraints.txt --override overrides.txt"


def test_every_command_that_is_shown_installs_with_the_pins_and_the_overrides():
    shown = []
    for pattern in ("*.md", "*.yaml", "*.py", "Makefile", "Dockerfile"):
        for path in REPOSITORY.rglob(pattern):
            inside = path.relative_to(REPOSITORY).parts
            if inside[0] not in ("tests", "shared") and not any(part.startswith(".") for part in inside):
                shown += re.findall(r"[^\n`]*pip install[^\n`]*-e [^\n`]*", path.read_text(encoding="utf-8"))
    assert shown
    as_it_should_be = re.compile(rf"uv pip install( --[a-z-]+)* {re.escape(OPTIONS)} -e")
    assert [line for line in shown if not as_it_should_be.search(line)] == []


def test_an_extra_and_options_stand_where_uv_takes_them():
    assert install_command() == f"uv pip install {OPTIONS} -e ."
    assert install_command("gpu", "--no-build-isolation") == (
        f"uv pip install --no-build-isolation {OPTIONS} -e '.[gpu]'"
    )


@pytest.mark.parametrize("kind", ["wheel", "editable", "sdist"])
def test_pip_is_told_in_one_sentence_why_it_cannot_and_other_builders_build(kind, tmp_path):
    for name in ("build_backend.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, tmp_path)
    (tmp_path / "src").mkdir()
    hook = f"import build_backend; print(build_backend.get_requires_for_build_{kind}())"
    command = [sys.executable, "-c", hook]

    def ask(**environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)

    refused = ask(PIP_BUILD_TRACKER="/somewhere")
    assert refused.returncode == 1
    assert refused.stdout == ""
    (sentence,) = refused.stderr.splitlines()
    assert sentence.startswith("rotary-foundry cannot be installed by pip") and install_command() in sentence
    assert ask().stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(("package", "old"), [("torch", "2.7.0"), ("transformers", "4.57.6")])
def test_a_launch_says_what_an_installation_without_overrides_lacks(package, old, tmp_path):
    """A torch that Composer's own bound allows is found first; nothing of it is imported."""
    folder = tmp_path / f"{package}-{old}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {old}\n")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    refused = subprocess.run(
        [sys.executable, "launch", "yamls/main/nano.yaml"],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 2
    assert re.match(rf"error: '{package}': expected [\d.]+ or newer, got {re.escape(old)}, which", refused.stderr)
    assert refused.stderr.endswith(f"run {install_command()}\n") and refused.stderr.count("\n") == 1
