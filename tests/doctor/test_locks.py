"""Who holds what: locks of real processes, of ended ones, and of machines that cannot be asked."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from rotary_foundry.doctor.finding import BAD, DOUBTFUL, GOOD
from rotary_foundry.doctor.locks import check_locks
from rotary_foundry.runs.run_folder import RunFolder
from rotary_foundry.runs.run_lock import LOCK, Holder, LockFile, LockObject, RunLock
from rotary_foundry.utils.object_store import Bucket

from ..object_store import bucket
from .conftest import only


@pytest.fixture
def small(recipe, tmp_path, monkeypatch):
    """The recipe with its folders in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    data = replace(recipe.data, local="data/small")
    return replace(recipe, runs_folder="runs", data=data)


def test_where_nobody_is_at_work_it_says_so(small):
    assert only(check_locks(small)).said == "nobody is at work in runs"
    assert only(check_locks(None)).mark == GOOD


def test_a_run_that_would_be_refused_is_in_the_way_and_others_are_told(small):
    here = f"process {os.getpid()} on {os.uname().nodename}, since "
    others = ["runs/finetune/bert", "runs/other/evaluations/export/needle", "evaluations/bert/glue", "data/.new-work"]
    own = RunFolder.of(small).path
    for folder in (own, *map(Path, others)):
        with RunLock(LockFile(folder, "out")):
            for asked in (small, None):
                found = only(check_locks(asked))
                assert found.said.startswith(f"{folder}: {here}")
                assert found.mark == (BAD if folder == own and asked is small else GOOD)


def test_ended_holders_and_those_that_cannot_be_asked_are_told_apart(small):
    here = Holder.this()
    folder = RunFolder.of(small).path
    folder.mkdir(parents=True)

    def said(holder: Holder) -> tuple[str, str]:
        (folder / LOCK).write_text(json.dumps(asdict(holder)))
        found = only(check_locks(small))
        return found.mark, found.said

    mark, words = said(replace(here, start=here.start - 1))
    assert mark == GOOD and "has ended and left its lock; the next start takes it over at once" in words
    mark, words = said(replace(here, host="node-7", boot="another"))
    assert mark == DOUBTFUL and "on node-7, since " in words and "renewed 0 s ago, if the clocks" in words
    (folder / LOCK).write_text("garbage")
    assert only(check_locks(small)).said == "runs/small/lock.json: cannot be read as a lock"
    (folder / LOCK).unlink()
    (folder / LOCK).mkdir()
    assert only(check_locks(small)).mark == BAD


def test_the_lock_of_the_runs_store_is_told(small):
    with bucket("held"), RunLock(LockObject(Bucket("s3://held/runs/small"))):
        found = only(check_locks(replace(small, save_folder="s3://held/runs")))
    assert found.mark == BAD
    assert found.said.startswith(f"s3://held/runs/small: process {os.getpid()} on ")
