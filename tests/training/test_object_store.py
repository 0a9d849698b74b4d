"""Checkpoints in an object store: a real S3 API (moto's server) on loopback, and machines that lose their disks."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest
from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import ClientError
from composer.utils import dist
from composer.utils.object_store import S3ObjectStore

from rotary_foundry.runs import checkpoint_store
from rotary_foundry.runs.checkpoint_store import CheckpointStore
from rotary_foundry.runs.record_files import append_line, read_lines
from rotary_foundry.runs.run_folder import CompleteCheckpoint, RunFolder, mark_complete, remove_checkpoint
from rotary_foundry.utils.errors import FAILED, FoundryError
from rotary_foundry.utils.object_store import is_fault

from ..object_store import bucket, serving
from ..ranks import on_ranks
from .conftest import TAMPERED_LAUNCH
from .runs import assert_same_run

BUCKET = "s3://checkpoints"
NOBODY = "http://127.0.0.1:1"  # no server listens there
PARTS = ("__0_0.distcp", "__1_0.distcp", ".metadata")
ROLLBACK = {
    "trigger": "at",
    "why": "set",
    "token": 9500,
    "to_token": 8000,
    "lr": 1e-3,
    "weight_decay": None,
    "data": "replay",
}


@pytest.fixture(scope="module", autouse=True)
def endpoint():
    with bucket(BUCKET.removeprefix("s3://")) as url:
        yield url


@pytest.fixture
def save_folder(tmp_path) -> str:
    return f"{BUCKET}/{tmp_path.name}"


def machine(path: Path, save_folder: str) -> CheckpointStore:
    """A run's store, as a machine with a disk of its own sees it."""
    (path / "run").mkdir(parents=True, exist_ok=True)
    return CheckpointStore(save_folder, RunFolder(path / "run"))


def write(store: CheckpointStore, batch: int, rollbacks: int = 0) -> CompleteCheckpoint:
    """A checkpoint on the machine's disk."""
    folder = store.folder.checkpoints / f"ba{batch}"
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: batch + len(name) + rollbacks for name in PARTS}
    for name, size in files.items():
        (folder / name).write_bytes(b"x" * size)
    checkpoint = CompleteCheckpoint(folder, batch, batch * 1000, rollbacks, {"stage": "pretrain"}, files)
    mark_complete(checkpoint)
    return checkpoint


def save(store: CheckpointStore, batch: int, rollbacks: int = 0, outdated=None) -> None:
    append_line(store.folder.metrics, {"batch": batch, "token": batch * 1000})
    store.save(write(store, batch, rollbacks), list(PARTS), outdated)


def names(checkpoints: list[CompleteCheckpoint]) -> list[str]:
    return [checkpoint.folder.name for checkpoint in checkpoints]


def test_an_empty_disk_gets_the_newest_checkpoint_with_its_records(tmp_path, save_folder):
    first, second = machine(tmp_path / "first", save_folder), machine(tmp_path / "second", save_folder)
    first.folder.tokenizer.mkdir()
    for name in ("tokenizer.json", "generation_config.json"):
        (first.folder.tokenizer / name).write_text("{}")
    first.folder.wandb_id.write_text("0123abcd")
    save(first, 8)
    save(first, 10)
    assert second.bring_newest().batch == 10
    for name in ("tokenizer.json", "generation_config.json"):
        assert (second.folder.tokenizer / name).read_text() == "{}"
    assert second.folder.wandb_id.read_text() == "0123abcd"  # so it is one run of W&B still
    assert second.folder.newest_checkpoint().batch == 10
    assert not (second.folder.checkpoints / "ba8").exists()
    assert second.folder.metrics.read_bytes() == first.folder.metrics.read_bytes()
    append_line(second.folder.metrics, {"batch": 11, "token": 11_000})
    remove_checkpoint(second.folder.checkpoints / "ba10")
    assert second.bring_newest().batch == 10
    assert [line["batch"] for line in read_lines(second.folder.metrics)] == [8, 10, 11]
    assert machine(tmp_path / "first", f"{save_folder}-other").bring_newest().batch == 10  # to another store
    assert names(machine(tmp_path / "third", f"{save_folder}-other").checkpoints()) == ["ba10"]


@pytest.mark.parametrize("damage", ["no COMPLETE", "part missing", "part cut short", "COMPLETE torn"])
def test_a_damaged_checkpoint_in_the_store_is_passed_over_for_the_one_before(tmp_path, save_folder, damage):
    first, second = machine(tmp_path / "first", save_folder), machine(tmp_path / "second", save_folder)
    save(first, 9)
    save(first, 10)
    bucket = boto3.resource("s3").Bucket(first.bucket.objects.bucket)
    newest = f"{first.bucket.objects.prefix}checkpoints/ba10/"
    if damage == "no COMPLETE":
        bucket.Object(f"{newest}COMPLETE").delete()
    elif damage == "part missing":
        bucket.Object(f"{newest}__1_0.distcp").delete()
    elif damage == "part cut short":
        bucket.Object(f"{newest}__1_0.distcp").put(Body=b"x")
    else:
        bucket.Object(f"{newest}COMPLETE").put(Body=b'{"batch": 10, "fi')
    assert second.bring_newest().batch == 9
    bucket.Object(f"{first.bucket.objects.prefix}checkpoints/ba9/COMPLETE").delete()
    with pytest.raises(FoundryError, match=r"/run/checkpoints/: 2 checkpoint\(s\) and none of them complete; move"):
        machine(tmp_path / "third", save_folder).bring_newest()


def test_a_first_upload_that_was_cut_off_is_a_fresh_start_without_the_disk_and_repeated_with_it(tmp_path, save_folder):
    first = machine(tmp_path / "first", save_folder)
    checkpoint = write(first, 9)
    (checkpoint.folder / "FIRST").touch()
    first.save(checkpoint, list(PARTS), None)
    bucket = boto3.resource("s3").Bucket(first.bucket.objects.bucket)
    bucket.Object(f"{first.bucket.objects.prefix}checkpoints/ba9/COMPLETE").delete()
    assert machine(tmp_path / "second", save_folder).bring_newest() is None
    assert first.bring_newest() == checkpoint
    assert machine(tmp_path / "third", save_folder).bring_newest().batch == 9


def test_what_a_disk_holds_under_the_same_name_is_not_taken_for_the_checkpoint(tmp_path, save_folder):
    first, second = machine(tmp_path / "first", save_folder), machine(tmp_path / "second", save_folder)
    write(second, 10)
    append_line(first.folder.ledger, ROLLBACK | {"token": 10_500})
    save(first, 10, rollbacks=1)
    assert second.bring_newest().rollbacks == 1
    assert second.folder.newest_checkpoint().rollbacks == 1


def test_the_ledger_comes_along_and_what_it_abandons_is_never_chosen(tmp_path, save_folder):
    first, second = machine(tmp_path / "first", save_folder), machine(tmp_path / "second", save_folder)
    save(first, 8)
    save(first, 9)
    append_line(first.folder.ledger, ROLLBACK)  # and the machine dies as soon as it has written that,
    first.folder.tidy_up()
    assert first.bring_newest().batch == 8  # or after it started again
    assert second.bring_newest().batch == 8
    assert [rollback.to_token for rollback in second.folder.rollbacks()] == [8000]
    save(second, 9, rollbacks=1)
    assert machine(tmp_path / "third", save_folder).bring_newest().rollbacks == 1


def test_two_machines_that_went_on_apart_are_refused(tmp_path, save_folder):
    first, second = machine(tmp_path / "first", save_folder), machine(tmp_path / "second", save_folder)
    save(first, 8)
    append_line(first.folder.ledger, ROLLBACK)
    first.bring_newest()
    append_line(second.folder.ledger, ROLLBACK | {"token": 9900})
    with pytest.raises(FoundryError, match="list different rollbacks, so two runs continued under one name; move"):
        second.bring_newest()


def test_only_so_many_are_kept_in_the_store_and_abandoned_ones_do_not_count(tmp_path, save_folder):
    store = machine(tmp_path, save_folder)
    for batch in (6, 7, 8, 9):
        save(store, batch)
    append_line(store.folder.ledger, ROLLBACK | {"to_token": 7000})
    save(store, 10, rollbacks=1, outdated=lambda complete: complete[:-2])
    assert names(store.checkpoints()) == ["ba7", "ba8", "ba9", "ba10"]
    assert machine(tmp_path / "other", save_folder).bring_newest().batch == 10


def save_with_a_dead_endpoint(folder: Path, save_folder: str) -> None:
    """On two ranks: three saves, and for each of the first two the store is out of one rank's reach."""
    store = machine(folder, save_folder)
    rank, alive = dist.get_global_rank(), store.bucket.objects
    checkpoint_store._warn = lambda message: append_line(folder / "warnings.jsonl", {"rank": rank, "said": message})
    for batch, cut_off in ((2, 0), (4, 1), (6, None)):
        if rank == 0:
            write(store, batch)
        dist.barrier()
        dead = S3ObjectStore(alive.bucket, alive.prefix, endpoint_url=NOBODY)
        store.bucket.objects = dead if rank == cut_off else alive
        checkpoint = store.folder.newest_checkpoint()
        store.save(checkpoint, [name for name in PARTS if name.startswith("__1") == (rank == 1)], None)


def test_ranks_agree_that_an_upload_failed_and_the_next_checkpoint_is_tried_again(tmp_path, save_folder):
    on_ranks(2, tmp_path, save_with_a_dead_endpoint, tmp_path / "machine", save_folder)
    assert names(machine(tmp_path / "other", save_folder).checkpoints()) == ["ba6"]
    warnings = read_lines(tmp_path / "machine/warnings.jsonl")
    assert [(line["rank"], line["said"].split()[1]) for line in warnings] == [(0, "ba2"), (0, "ba4")]
    assert all(NOBODY in line["said"] and "training continues" in line["said"] for line in warnings)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_run_goes_on_from_the_store_alone_over_a_rollback_and_past_a_torn_checkpoint(tiny, undisturbed):
    launch = ("run_name=moved", f"save_folder={BUCKET}/runs")
    run = tiny.folder / "runs/moved"
    store = CheckpointStore(f"{BUCKET}/runs", RunFolder(run))
    for kill_at in ("again:8", "again:15"):  # before anything is saved after the rollback, and two stages on
        killed = tiny.launch(*launch, script=TAMPERED_LAUNCH, KILL_AT=kill_at)
        assert "crashed with exit code -9" in killed.stderr, killed.stderr[-4000:]
        shutil.rmtree(run)
    assert "going on from ba7, token 2_560" in killed.stdout
    torn = store.bucket.objects.get_key("checkpoints/ba14/__1_0.distcp")
    store.bucket.objects.client.delete_object(Bucket=store.bucket.objects.bucket, Key=torn)
    resumed = tiny.launch(*launch)
    assert resumed.returncode == 0, resumed.stderr[-4000:]
    assert "going on from ba12, token 6_144" in resumed.stdout
    assert_same_run(run, undisturbed)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_run_outlives_its_store_up_to_a_rollback_and_goes_on_when_it_is_back(tiny, undisturbed):
    launch = ("run_name=outlives", f"save_folder={BUCKET}/runs")
    run = RunFolder(tiny.folder / "runs/outlives")

    def wait_for_the_second_checkpoint() -> None:
        while training.running() and not (run.checkpoints / "ba4/COMPLETE").exists():
            time.sleep(0.05)

    with ThreadPoolExecutor() as pool:
        with serving() as url:
            training = pool.submit(tiny.launch, *launch, AWS_ENDPOINT_URL=url)
            wait_for_the_second_checkpoint()
        ended = training.result()
    assert ended.returncode == FAILED
    for batch in (6, 7, 8, 10):
        assert f"warning: ba{batch} could not be uploaded to the store" in ended.stdout
    (error,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert f"'save_folder': {BUCKET}/runs/outlives: Could not connect to the endpoint URL" in error
    assert run.newest_checkpoint().batch == 10
    assert tiny.launch(*launch).returncode == 0
    assert_same_run(run.path, undisturbed)
    store = CheckpointStore(f"{BUCKET}/runs", run)
    assert store.checkpoints()[-1].token == run.newest_checkpoint().token


@pytest.mark.parametrize(("status", "fault"), [(503, True), (500, True), (403, False), (404, False)])
def test_a_store_that_fails_is_a_fault_and_one_that_refuses_is_not(status, fault):
    error = ClientError({"Error": {"Code": "any"}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject")
    assert is_fault(error) == fault
    of_an_upload = S3UploadFailedError(str(error))
    of_an_upload.__context__ = error
    assert is_fault(of_an_upload) == fault


def test_a_store_out_of_reach_is_refused_in_one_line_and_nothing_is_trained(tiny):
    run = tiny.launch("run_name=nowhere", f"save_folder={BUCKET}/runs", ranks=1, AWS_ENDPOINT_URL=NOBODY)
    assert run.returncode == FAILED
    (error,) = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert f"'save_folder': {BUCKET}/runs/nowhere: Could not connect to the endpoint URL: \"{NOBODY}/" in error
    assert "Traceback" not in run.stdout + run.stderr
    assert not (tiny.folder / "runs/nowhere/recipe.yaml").exists()
