"""What W&B is told when a Trainer ends: a stop is no failure, and a rollback is no end."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb

from rotary_foundry.loggers.wandb_run import WandBRun
from rotary_foundry.runs.trouble import RollbackDue, Trouble
from rotary_foundry.utils.errors import FoundryError, StopRequested
from tests.wandb_file import Recorded, read_back


def logger(folder: Path, first_step: int = 0) -> WandBRun:
    made = WandBRun(
        first_step=first_step,
        secret_in={},
        checkpoint_references=False,
        project="tiny",
        name="tiny",
        init_kwargs={"mode": "offline", "dir": str(folder), "id": "one", "resume": "allow"},
    )
    made.init(SimpleNamespace(run_name="tiny"), None)
    return made


def close_after(error: Exception, run: WandBRun) -> None:
    try:
        raise error
    except type(error):  # as training/run.py does it
        run.post_close()


def read(folder: Path) -> Recorded:
    wandb.teardown()  # a finished run's file is whole when W&B's process has ended, which finish does not wait for
    (path,) = folder.glob("wandb/offline-run-*/run-one.wandb")
    return read_back(path)


@pytest.fixture(autouse=True)
def no_run_left_open():
    yield
    assert wandb.run is None


def test_a_run_that_is_stopped_is_preempted_and_one_that_fails_is_not(tmp_path):
    for name, error in (("stopped", StopRequested("by SIGTERM")), ("failed", FoundryError("no disk"))):
        (tmp_path / name).mkdir()
        close_after(error, logger(tmp_path / name))
        assert ("preempting" in read(tmp_path / name).kinds) == (name == "stopped")
        assert read(tmp_path / name).exit_code == 1  # the end of a preempted run that was not its own doing


def test_after_a_rollback_the_same_run_goes_on_at_a_step_of_its_own(tmp_path):
    before = logger(tmp_path)
    before.log_metrics({"loss/train": 3.0, "time/token": 500}, step=5)
    close_after(RollbackDue(Trouble("spike", "it rose", 300), 500), before)
    after = logger(tmp_path, first_step=5 - 3 + 1)
    after.log_metrics({"loss/train": 2.0, "time/token": 300}, step=3)
    after.log_hyperparameters({"num_nodes": 1})
    after.log_hyperparameters({"num_nodes": 2})  # a resumed run may be on other machines
    after.post_close()
    recorded = read(tmp_path)
    assert [(row["_step"], row["time/token"]) for row in recorded.history] == [(5, 500), (6, 300)]
    assert (recorded.config["num_nodes"], recorded.exit_code) == (2, 0)
