"""Runs that are killed, stopped, or moved to other processes end as the undisturbed run ends."""

import re
import shutil
import signal
import time

import pytest

from rotary_foundry.runs.run_folder import RunFolder, complete_checkpoints
from rotary_foundry.utils.errors import STOPPED

from .conftest import TAMPERED_LAUNCH
from .runs import assert_same_run, column, digests, records

# The tiny recipe: warm-up in updates 1 to 4, rungs end at 4 and 8, checkpoints every second update. At the end of
# update 11 it goes back to the end of 7; stage 1 ends with 12, the decay begins with 17.
KILLS = (
    "update:1",  # before the first checkpoint
    "saving:2",  # while the first is written
    "update:3",  # inside the warm-up
    "update:4",  # on a rung's last update
    "saving:6",  # while a checkpoint is written
    "saved:8",  # as soon as a rung's last update is saved
    "update:10",  # in the stretch that is abandoned later
    "update:11",  # when a rollback is due
    "ledger:1",  # between the rollback's line in the ledger and the restart
    "again:8",  # just after the rollback
    "saved:12",  # at the stage switch
    "again:13",  # just after it
    "saved:14",
    "again:15",
    "again:15",  # twice in a row
    "saving:16",  # while the checkpoint after the last is written
    "again:18",  # in the decay
)
FEW = ("saving:2", "saving:6", "ledger:1", "stopped:17")  # the last in the decay, where the mask rate moves
WITH_WANDB = "loggers.wandb={project: tiny, init_kwargs: {mode: offline}}"


@pytest.mark.parametrize("kills", [FEW, pytest.param(KILLS, marks=[pytest.mark.long, pytest.mark.timeout(900)])])
def test_a_run_that_is_killed_again_and_again_ends_in_the_undisturbed_runs_weights(tiny, undisturbed, kills):
    """One of its stops is SIGTERM to one rank, which ends the update, saves it and has a status of its own.

    Elsewhere the second resume began from zero (datasets#8308).
    """
    run = tiny.folder / f"runs/killed-{len(kills)}"
    launch = (f"run_name={run.name}", *([WITH_WANDB] if kills == KILLS else []))
    for kill_at in kills:
        if kill_at.startswith("stopped:"):
            at = int(kill_at.removeprefix("stopped:"))
            signalled = {"KILL_AT": f"again:{at}", "KILL_RANK": "1", "SIGNAL": signal.SIGTERM.name}
            stopped = tiny.launch(*launch, script=TAMPERED_LAUNCH, **signalled)
            assert stopped.returncode == STOPPED
            assert f"stopped as asked after update {at}, which is saved; the same command goes on" in stopped.stdout
            assert RunFolder(run).newest_checkpoint().batch == at
            assert len(records(run)) == at
        else:
            killed = tiny.launch(*launch, script=TAMPERED_LAUNCH, KILL_AT=kill_at)
            assert "crashed with exit code -9" in killed.stderr, (kill_at, killed.stderr[-4000:])
    resumed = tiny.launch(*launch)
    assert resumed.returncode == 0, resumed.stderr[-4000:]
    assert re.search(r"update \d+ is done, \d+\.\d s after the start", resumed.stdout)
    assert_same_run(run, undisturbed)
    of_starts = list(run.glob("wandb/offline-run-*"))
    assert len(of_starts) == (len(kills) + 1 if kills == KILLS else 0)
    assert all(path.name.endswith(f"-{RunFolder(run).wandb_id.read_text()}") for path in of_starts)  # one run of W&B


@pytest.mark.long
def test_when_one_rank_dies_all_end_at_once_and_nothing_is_lost(tiny, undisturbed):
    died = tiny.launch("run_name=died", script=TAMPERED_LAUNCH, KILL_AT="again:14", KILL_RANK="1")
    ended = time.time()
    assert "crashed with exit code -9" in died.stderr
    run = tiny.folder / "runs/died"
    assert ended - RunFolder(run).metrics.stat().st_mtime < 60  # seconds
    assert RunFolder(run).newest_checkpoint().batch == 12
    assert tiny.launch("run_name=died").returncode == 0
    assert_same_run(run, undisturbed)


@pytest.mark.long
def test_a_checkpoint_that_the_disk_cannot_hold_ends_the_run_cleanly_and_leaves_the_one_before(tiny, undisturbed):
    full = tiny.launch(
        "run_name=full", script=TAMPERED_LAUNCH, KILL_AT="update:5", KILL_RANK="0", FILE_LIMIT=str(200_000)
    )
    assert full.returncode == 2
    (error,) = [line for line in full.stderr.splitlines() if line.startswith("error: ")]
    assert "checkpoints/ba6: cannot be written" in error
    assert "File too large" in error
    run = RunFolder(tiny.folder / "runs/full")
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["ba2", "ba4"]
    assert tiny.launch("run_name=full").returncode == 0
    assert_same_run(run.path, undisturbed)


@pytest.mark.long
@pytest.mark.parametrize(("keep", "kept"), [(1, [7, 10]), (2, [7, 8, 10])])
def test_old_checkpoints_go_but_not_the_one_that_a_rollback_will_go_back_to(tiny, keep, kept):
    name = f"keep-{keep}"
    killed = tiny.launch(
        f"run_name={name}", f"save_num_checkpoints_to_keep={keep}", script=TAMPERED_LAUNCH, KILL_AT="saved:10"
    )
    assert "crashed with exit code -9" in killed.stderr
    folders = RunFolder(tiny.folder / "runs" / name).checkpoints.iterdir()
    assert [checkpoint.batch for checkpoint in complete_checkpoints(folders)] == kept


EVEN = [  # batches that 1, 2, 3 and 4 ranks divide; 5 and 7 do not, and their ranks differ by a row
    "model.attn_out_dropout=0",
    "rollback.at=null",
    "stages.pretrain.device_train_microbatch_size=4",
    "stages.pretrain.global_train_batch_size=24",
    "stages.pretrain.batch_size_ramp={initial: 12, increment: 12, duration: 3072tok}",
    *(
        f"stages.{stage}.{setting}"
        for stage in ("extend", "decay")
        for setting in ("duration=6144tok", "global_train_batch_size=12", "device_train_microbatch_size=3")
    ),
]
MOVED_AT = 3  # updates; in the middle of the first rung


@pytest.fixture(scope="module")
def even(tiny):
    """The run folder of a run on two ranks without dropout."""
    run = tiny.launch("run_name=even", f"save_interval={MOVED_AT}ba", *EVEN)
    assert run.returncode == 0, run.stderr[-4000:]
    return tiny.folder / "runs/even"


@pytest.mark.parametrize(
    ("ranks", "overrides"),
    [
        (1, []),
        pytest.param(3, [], marks=pytest.mark.long),
        pytest.param(4, [], marks=pytest.mark.long),
        pytest.param(5, [], marks=pytest.mark.long),
        pytest.param(7, [], marks=pytest.mark.long),
        pytest.param(
            2,
            [
                "data.num_workers=2",
                "stages.pretrain.device_train_microbatch_size=3",
                "stages.extend.device_train_microbatch_size=2",
                "stages.decay.device_train_microbatch_size=2",
            ],
            marks=pytest.mark.long,
        ),
    ],
    ids=["1 rank", "3 ranks", "4 ranks", "5 ranks", "7 ranks", "other workers and microbatches"],
)
def test_a_run_goes_on_with_other_processes_on_the_same_rows_to_the_same_losses(tiny, even, ranks, overrides):
    name = f"even-{ranks}"
    run = RunFolder(tiny.folder / "runs" / name)
    shutil.copytree(even / "checkpoints" / f"ba{MOVED_AT}", run.checkpoints / f"ba{MOVED_AT}")
    shutil.copy(even / "recipe.yaml", run.recipe)
    run.metrics.write_text("".join((even / "metrics.jsonl").read_text().splitlines(keepends=True)[:MOVED_AT]))
    moved = tiny.launch(f"run_name={name}", "save_interval=100ba", *EVEN, *overrides, ranks=ranks)
    assert moved.returncode == 0, moved.stderr[-4000:]
    assert digests(run.path) == digests(even)
    assert column(run.path, "loss") == pytest.approx(column(even, "loss"), rel=1e-3)
    for override in [f"save_interval: {MOVED_AT}ba → 100ba", *(override.split("=")[0] for override in overrides)]:
        assert f"changed since the last start: {override}" in moved.stdout
