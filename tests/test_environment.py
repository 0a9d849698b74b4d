"""Which commit a run is of, as real repositories and none say it."""

import re
import subprocess
from pathlib import Path

import pytest

from rotary_foundry.runs.environment import commit

REPOSITORY = Path(__file__).parents[1]
BUILT = "5" * 40


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A package in a repository of one commit."""
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "ada")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "ada@example.org")
    monkeypatch.delenv("ROTARY_FOUNDRY_COMMIT", raising=False)
    folder = tmp_path / "src"
    folder.mkdir()
    (folder / "__init__.py").touch()
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message=first"]):
        subprocess.run(["git", "-C", tmp_path, *command], check=True)
    return folder


def test_it_is_the_repositorys_with_a_word_on_changes(package):
    head = subprocess.run(["git", "-C", package, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert commit(package) == head
    (package / "new.py").touch()
    assert commit(package) == head  # git has not been told of it
    (package / "__init__.py").write_text("changed = 1")
    assert commit(package) == f"{head} + changes"


def test_what_is_installed_inside_a_repository_belongs_to_no_commit(package):
    installed = package / "site-packages"
    installed.mkdir()
    (installed / "__init__.py").touch()
    assert commit(installed) is None


def test_without_git_it_is_what_the_image_was_built_of_and_git_goes_before_that(package, tmp_path, monkeypatch):
    alone = tmp_path.parent / f"{tmp_path.name}-alone"
    alone.mkdir()
    (alone / "__init__.py").touch()
    assert commit(alone) is None
    monkeypatch.setenv("ROTARY_FOUNDRY_COMMIT", BUILT)
    assert commit(alone) == BUILT
    assert commit(package) not in (BUILT, None)
    monkeypatch.setenv("PATH", str(tmp_path))  # no git there
    assert commit(package) == BUILT
    monkeypatch.setenv("ROTARY_FOUNDRY_COMMIT", "")  # as an image has it that was built without
    assert commit(package) is None


def test_this_checkout_has_one(monkeypatch):
    monkeypatch.delenv("ROTARY_FOUNDRY_COMMIT", raising=False)
    in_repository = (REPOSITORY / ".git").exists()
    assert re.fullmatch(r"[0-9a-f]{40}( \+ changes)?" if in_repository else "None", str(commit()))
