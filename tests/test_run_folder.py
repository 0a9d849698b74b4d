"""Only what is whole is read: checkpoints with all their parts, records with their line ends."""

import json

import pytest

from rotary_foundry.runs.record_files import append_line, write_whole
from rotary_foundry.runs.run_folder import CompleteCheckpoint, RunFolder, mark_complete, remove_checkpoint
from rotary_foundry.utils.errors import FoundryError


def checkpoint(run: RunFolder, batch: int, rollbacks: int = 0):
    folder = run.checkpoints / f"ba{batch}"
    folder.mkdir(parents=True)
    files = {name: batch + len(name) for name in ("__0_0.distcp", "__1_0.distcp", ".metadata")}
    for name, size in files.items():
        (folder / name).write_bytes(b"x" * size)
    mark_complete(CompleteCheckpoint(folder, batch, batch * 1000, rollbacks, {}, files))
    return folder


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return RunFolder(tmp_path)


def test_the_newest_complete_checkpoint_is_chosen_by_its_token_not_its_name(run):
    checkpoint(run, 9)
    checkpoint(run, 10)
    assert run.newest_checkpoint().batch == 10


@pytest.mark.parametrize(
    "damage", ["no COMPLETE", "part missing", "part cut short", "COMPLETE torn", "COMPLETE of text", "part outside"]
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(run, damage):
    checkpoint(run, 9)
    newest = checkpoint(run, 10)
    if damage == "no COMPLETE":
        (newest / "COMPLETE").unlink()
    elif damage == "part missing":
        (newest / "__1_0.distcp").unlink()
    elif damage == "part cut short":
        (newest / "__1_0.distcp").write_bytes(b"x")
    elif damage == "part outside":
        complete = json.loads((newest / "COMPLETE").read_text())
        complete["files"]["../ba9/.metadata"] = (run.checkpoints / "ba9/.metadata").stat().st_size
        (newest / "COMPLETE").write_text(json.dumps(complete))
    elif damage == "COMPLETE of text":
        complete = json.loads((newest / "COMPLETE").read_text())
        (newest / "COMPLETE").write_text(json.dumps(complete | {"token": "10000"}))
    else:
        (newest / "COMPLETE").write_text('{"batch": 10, "fi')
    assert run.newest_checkpoint().batch == 9
    remove_checkpoint(run.checkpoints / "ba9")
    with pytest.raises(FoundryError, match="none of them complete; move the folder away"):
        run.newest_checkpoint()


def test_a_run_without_checkpoints_is_fresh(run):
    assert run.newest_checkpoint() is None


def test_a_run_is_fresh_until_its_first_checkpoint_is_complete(run):
    first = run.checkpoints / "ba1"
    first.mkdir(parents=True)
    (first / "FIRST").touch()
    (first / "__0_0.distcp").touch()
    assert run.newest_checkpoint() is None
    checkpoint(run, 2)
    assert run.newest_checkpoint().batch == 2
    (run.checkpoints / "ba2/COMPLETE").unlink()
    with pytest.raises(FoundryError, match="none of them complete; move the folder away"):
        run.newest_checkpoint()


def test_a_damaged_first_checkpoint_is_no_fresh_start(run):
    (checkpoint(run, 1) / "FIRST").touch()
    assert run.newest_checkpoint().batch == 1
    (run.checkpoints / "ba1/__0_0.distcp").unlink()
    with pytest.raises(FoundryError, match="none of them complete; move the folder away"):
        run.newest_checkpoint()


def test_a_line_that_a_killed_process_left_torn_is_cut_off_and_the_last_line_of_a_batch_holds(run):
    append_line(run.metrics, {"batch": 1, "token": 1, "loss": 3.0})
    append_line(run.metrics, {"batch": 2, "token": 2, "loss": 2.0})
    with open(run.metrics, "a") as file:
        file.write(json.dumps({"batch": 3, "loss": 1.0})[:9])
    append_line(run.metrics, {"batch": 2, "token": 2, "loss": 2.5})
    assert [(record["batch"], record["loss"]) for record in run.records(run.metrics)] == [(1, 3.0), (2, 2.5)]


@pytest.mark.parametrize("there", ["where it was started", "here", "nowhere", "both"])
def test_a_relative_path_is_relative_to_where_the_run_was_started_if_anything_is_there(there, tmp_path, monkeypatch):
    started, here = tmp_path / "started", tmp_path / "here"
    for folder, named in ((started, ("where it was started", "both")), (here, ("here", "both"))):
        (folder / ("data/x" if there in named else "runs")).mkdir(parents=True)
    run = RunFolder(started)
    run.environment.write_text(json.dumps({"working_directory": str(started)}))
    monkeypatch.chdir(here)
    assert run.located("data/x") == ("data/x" if there == "here" else str(started / "data/x"))
    assert run.located("/data/x") == "/data/x"
    monkeypatch.chdir(started)
    assert run.located("data/x") == "data/x"


@pytest.mark.parametrize("content", [None, "{}", "[]", '{"working_directory": null}', "{"])
def test_a_run_that_does_not_say_where_it_was_started_has_its_paths_relative_to_here(content, run):
    if content is not None:
        run.environment.write_text(content)
    assert run.located("data/x") == "data/x"


def test_a_file_that_a_full_disk_does_not_take_is_named(tmp_path):
    for name in ("metrics.jsonl", ".run.plan.json"):
        (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*/metrics\.jsonl'"):
        append_line(tmp_path / "metrics.jsonl", {"batch": 1})
    with pytest.raises(OSError, match=r"No space left on device: '.*/run/plan\.json'"):
        write_whole(tmp_path / "run/plan.json", "{}\n")
