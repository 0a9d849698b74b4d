"""The work folder: whose it is, and that nothing else is touched."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from rotary_foundry.data_prep import finishing, stages
from rotary_foundry.data_prep.pipeline import prepare, settings
from rotary_foundry.data_prep.readers import SourceConfig
from rotary_foundry.data_prep.work import Work
from rotary_foundry.utils.errors import DataError
from tests.data_prep.small_corpus import content


def test_a_folder_of_somebody_elses_is_neither_used_nor_removed(config, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match=r"scratch: holds something else; .* choose another folder with work="):
        prepare(replace(config, work=str(scratch)))
    prepare(config)
    with pytest.raises(DataError, match="scratch: holds something else"):  # there is nothing to do, and still
        prepare(replace(config, work=str(scratch)))
    assert content(scratch) == {"thesis.txt": b"precious"}


def test_a_folder_on_another_disk_serves(config, tmp_path, monkeypatch):
    def across(old: Path, new: Path) -> None:
        if old.name == "whole":
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(old, new)

    prepare(replace(config, out=str(tmp_path / "undisturbed")))
    rename = os.rename
    monkeypatch.setattr(finishing.os, "rename", across)
    prepare(config)
    assert content(Path(config.out)) == content(tmp_path / "undisturbed")
    assert not list(tmp_path.glob(".*"))


def test_another_split_or_name_of_a_data_set_is_another_source(config, tmp_path):
    saved = SourceConfig("huggingface", str(tmp_path), split="train")
    configs = [replace(config, sources={"a": source}) for source in (saved, replace(saved, split="test"))]
    train, test = (settings(each)["sources"] for each in configs)
    assert train != test


def test_a_disk_that_takes_not_even_the_error_is_named(config, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def keep_error(work, stage, rank, text):
        (work.folder / "errors").mkdir(exist_ok=True)
        (work.folder / "errors" / f"{stage}-{rank:05d}.txt").touch()
        full()

    monkeypatch.setattr(stages, "write_shards", full)
    monkeypatch.setattr(Work, "keep_error", keep_error)
    with pytest.raises(DataError, match=r"/\.out-work: cannot be written: No space left on device"):
        prepare(config)
