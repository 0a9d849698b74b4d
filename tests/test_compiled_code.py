"""Code that torch.compile and Triton made is kept apart by release."""

import os
import tempfile
from importlib import metadata
from pathlib import Path
from unittest import mock

import pytest
from torch._inductor.runtime.cache_dir_utils import cache_dir, triton_cache_dir

from rotary_foundry.utils.compiled_code import FOLDERS, separate_compiled_code


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """One without the two variables, as it is again afterwards."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with mock.patch.dict(os.environ):
        for variable in FOLDERS:
            os.environ.pop(variable, None)
        yield


def folders_with(monkeypatch, **releases: str) -> list[Path]:
    def version(package: str) -> str:
        if package not in releases:
            raise metadata.PackageNotFoundError(package)
        return releases[package]

    monkeypatch.setattr(metadata, "version", version)
    with mock.patch.dict(os.environ):
        separate_compiled_code()
        return [Path(cache_dir()), Path(triton_cache_dir(0))]  # what torch makes of it


def test_each_release_of_torch_cuda_and_triton_has_folders_of_its_own(monkeypatch, tmp_path):
    releases = [
        {"torch": "2.11.0", "triton": "3.6.0"},
        {"torch": "2.11.0+cu130", "triton": "3.6.0"},
        {"torch": "2.11.0", "triton": "3.7.0"},
        {"torch": "2.11.0"},
    ]
    found = [folder for each in releases for folder in folders_with(monkeypatch, **each)]
    assert len(set(found)) == 2 * len(releases)
    assert all(folder.is_relative_to(tmp_path) for folder in found)
    assert folders_with(monkeypatch, **releases[0]) == found[:2]


def test_what_is_set_stays(monkeypatch):
    os.environ["TRITON_CACHE_DIR"] = "/mine"
    ours, of_triton = folders_with(monkeypatch, torch="2.11.0", triton="3.6.0")
    assert of_triton == Path("/mine")
    assert "2.11.0" in ours.name
