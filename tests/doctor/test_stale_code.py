"""Compiled code of other releases, in a temporary folder of the test's own."""

import os
import tempfile
from pathlib import Path

import pytest

from rotary_foundry.doctor.finding import DOUBTFUL, GOOD
from rotary_foundry.doctor.stale_code import check_compiled_code
from rotary_foundry.utils.compiled_code import FOLDERS, separate_compiled_code
from rotary_foundry.utils.wording import size

from .conftest import only


@pytest.fixture
def ours(monkeypatch, tmp_path) -> Path:
    """The folder that the installed releases use, with code in it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for variable in FOLDERS:
        monkeypatch.setenv(variable, "")  # so that it is as before in the end
        monkeypatch.delenv(variable)
    separate_compiled_code()
    folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    keep(folder / "triton/kernel.cubin", 700)
    for variable in FOLDERS:
        monkeypatch.delenv(variable)
    return folder


def keep(file: Path, count: int) -> None:
    file.parent.mkdir(parents=True)
    file.write_bytes(bytes(count))


def test_folders_of_other_releases_are_named_with_their_size_and_nothing_else_is(ours):
    assert only(check_compiled_code()).mark == GOOD
    user = ours.name.partition("_torch-")[0]
    old = [ours.with_name(f"{user}_torch-{releases}") for releases in ("2.11.0_triton-3.6.0", "2.12.0+cpu_triton-none")]
    for folder in old:
        keep(folder / "triton/0/kernel.cubin", 3_000)
    for others in (user, f"{user}2_torch-2.11.0_triton-3.6.0"):  # torch's own, and another user's
        keep(ours.with_name(others) / "kernel.cubin", 1)
    found = only(check_compiled_code())
    assert found.mark == DOUBTFUL
    assert found.said == f"{size(6_000)} by other releases of torch or Triton: {old[0]}, {old[1]}"
    assert found.remedy == f"if no other environment uses them: rm -r {old[0]} {old[1]}"


@pytest.mark.parametrize("variable", FOLDERS)
def test_a_folder_from_the_environment_for_all_releases_is_doubtful(ours, monkeypatch, variable):
    monkeypatch.setenv(variable, "/shared/cache")
    found = only(check_compiled_code())
    assert found.mark == DOUBTFUL
    assert found.said.startswith(f"{variable}=/shared/cache: ")
    assert found.remedy.endswith(f"append /{ours.name}")
    monkeypatch.setenv(variable, f"/shared/cache/{ours.name}")
    assert only(check_compiled_code()).mark == GOOD
