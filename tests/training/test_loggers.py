"""What W&B and TensorBoard hold of a run, read back from their files; and what they must not hold."""

import json
import re
import time
from types import SimpleNamespace

import pytest
import wandb
from composer.loggers import WandBLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rotary_foundry import load_recipe
from rotary_foundry.loggers.metric_keys import METRICS, X_AXIS
from rotary_foundry.models.family import families
from rotary_foundry.runs.environment import commit
from rotary_foundry.runs.record_files import read_lines
from rotary_foundry.runs.run_folder import RunFolder
from rotary_foundry.training.loggers import loggers
from rotary_foundry.utils.errors import ConfigurationError
from rotary_foundry.utils.redaction import REDACTED
from tests.wandb_file import Recorded, read_back

from .conftest import PLANTED, PLANTED_KEY

NOT_ON_CPU = {"throughput/device/mfu"}
NOT_SO_SOON = {"loss/spike_score"}  # the stages of the run are shorter than what it needs
OF_WANDB = re.compile(r"_.*")


@pytest.fixture(scope="module")
def recorded(alone) -> Recorded:
    (path,) = alone.glob("wandb/offline-run-*/run-*.wandb")  # one, though there was a rollback
    return read_back(path)


def pattern(name: str) -> re.Pattern:
    return re.compile(re.sub("<.*?>", "[^/]+", name))


def test_a_run_with_a_rollback_is_one_run_of_wandb_under_the_id_that_its_folder_keeps(alone, recorded):
    assert recorded.run.run_id == (alone / "wandb_id").read_text()
    assert recorded.exit_code == 0
    assert {row.get("rollback/count") for row in recorded.history} == {None, 0, 1}
    assert len(list(alone.glob("wandb/offline-run-*"))) == 1


def test_every_update_is_a_row_of_wandb_at_the_token_that_it_ended_with(alone, recorded):
    assert recorded.step_metrics == {"*": X_AXIS}
    rows = [row for row in recorded.history if "loss/train" in row]
    lines = read_lines(RunFolder(alone).metrics)  # the abandoned ones, too
    for key, of_line in ((X_AXIS, "token"), ("loss/train", "loss"), ("recipe/lr", "lr"), ("recipe/rows", "rows")):
        assert [row[key] for row in rows] == pytest.approx([line[of_line] for line in lines]), key
    steps = [row["_step"] for row in recorded.history]
    assert steps == sorted(set(steps))


def test_the_table_of_keys_is_what_a_run_logs(tiny, recorded):
    found = {key for row in recorded.history for key in row if not OF_WANDB.fullmatch(key)}
    names = {metric.name for metric in METRICS}
    assert [key for key in sorted(found) if not any(pattern(name).fullmatch(key) for name in names)] == []
    missing = {name for name in names if not any(pattern(name).fullmatch(key) for key in found)}
    of_others = {f"recipe/{knob}" for family in families() for knob in family.knobs if f"recipe/{knob}" not in found}
    assert of_others.isdisjoint(f"recipe/{knob}" for knob in load_recipe(tiny.recipe).family.knobs)
    others = (
        "/accuracy",
        "/response_accuracy",
        "/prompt_loss_weight",
    )  # of decoders; this run is masked LM
    of_decoders = {name for name in missing if name.endswith(others)}
    of_tasks = {name for name in missing if "<task>" in name or name.endswith(("/examples_right", "/input_noise"))}
    assert missing == NOT_ON_CPU | NOT_SO_SOON | of_others | of_decoders | of_tasks


def test_the_loss_after_a_rollback_is_a_line_of_its_own(alone, recorded):
    (rollback,) = read_lines(RunFolder(alone).ledger)
    again = [row for row in recorded.history if "loss/stage/pretrain (1)" in row]
    assert again[0][X_AXIS] > rollback["to_token"]
    assert again[0]["rollback/count"] == 1


def test_evaluations_are_logged_by_stage(alone, recorded):
    for line in RunFolder(alone).records(RunFolder(alone).evaluations):
        values = [row[f"eval/{line['stage']}/loss"] for row in recorded.history if f"eval/{line['stage']}/loss" in row]
        assert values == pytest.approx([line["loss"]])


def test_wandb_has_the_recipe_with_its_overrides_and_the_commit(recorded):
    recipe = recorded.config["recipe"]
    assert (recipe["run_name"], recipe["data"]["num_workers"]) == ("alone", 2)
    assert recipe["stages"]["decay"]["mixture"] == {"one": 0.3, "two": 0.7}
    assert recipe["rollback"]["at"]["token"] == "5000tok"
    assert recorded.config["git_commit"] == commit()
    assert "run_name=alone" in recorded.arguments


def test_no_secret_is_in_any_file_of_the_run(alone, recorded):
    files = [path for path in alone.rglob("*") if path.is_file()]
    assert len(files) > 50
    for secret in (PLANTED, PLANTED_KEY):
        assert [path for path in files if secret.encode() in path.read_bytes()] == []
    assert (list(recorded.run.tags), recorded.run.notes) == ([f"of-{REDACTED}"], f"by {REDACTED}")  # where they stood


def test_checkpoints_are_references_to_where_they_lie(alone, recorded):
    by_name = {f"ba{json.loads(artifact.metadata)['batch']}": artifact for artifact in recorded.artifacts}
    for folder in alone.glob("checkpoints/ba*"):
        parts = by_name[folder.name].manifest.contents
        assert {part.ref for part in parts} == {path.as_uri() for path in folder.iterdir()}


def test_tensorboard_has_every_update_that_counts(alone):
    events = EventAccumulator(str(alone / "tensorboard/alone"), size_guidance={"scalars": 0})
    events.Reload()
    lines = RunFolder(alone).records(RunFolder(alone).metrics)
    for key, of_line in (("loss/train", "loss"), ("recipe/rope_theta", "rope_theta")):
        last = {event.step: event.value for event in events.Scalars(key)}
        assert [last[line["batch"]] for line in lines] == pytest.approx([line[of_line] for line in lines])


def test_every_line_of_the_records_says_how_fast_the_update_was_and_where_its_time_went(undisturbed):
    for line in read_lines(RunFolder(undisturbed).metrics):
        assert 0 < line["data_seconds"] < line["step_seconds"]
        assert 0 < line["tokens_per_second"] < line["real_tokens"] / line["step_seconds"]  # with what is between steps
        assert line["mfu"] is None  # on a CPU
        assert line["slowest_rank"] in (0, 1)
        assert 0 <= line["slowest_lag"] < 1  # of two, the median is their mean
        assert 0.1 < line["memory_gb"] < 100
        assert line["grad_norm"] > 0
        assert (line["update_norm"] > 0) == (line["lr"] > 0)


def wandb_logger(tiny, name: str, *overrides: str) -> WandBLogger:
    recipe = load_recipe(tiny.recipe, [f"run_name={name}", "loggers.wandb.project=tiny", *overrides])
    folder = RunFolder.of(recipe)
    folder.path.mkdir(parents=True, exist_ok=True)
    (logger,) = loggers(recipe, folder)
    return logger


def test_a_start_goes_on_in_the_run_of_the_last_start_and_another_run_is_another(tiny):
    ids = [wandb_logger(tiny, name)._init_kwargs["id"] for name in ("first", "first", "second")]
    assert ids[0] == ids[1] != ids[2]


def test_a_resume_with_other_keys_that_may_change_is_the_same_run_of_wandb(tiny):
    """W&B refused a resumed run's changed configuration, and the run crashed (asafam/HebrewModernBERT@e1ddf07)."""
    offline = "loggers.wandb.init_kwargs={mode: offline}"
    for interval in ("2ba", "4ba"):
        logger = wandb_logger(tiny, "resumed", offline, f"save_interval={interval}")
        logger.init(SimpleNamespace(run_name="resumed"), None)
        logger.log_metrics({"loss/train": 1.0}, step=1)
        logger.post_close()
        time.sleep(1.1)  # a start's folder is named by the second
    wandb.teardown()
    of_starts = sorted((tiny.folder / "runs/resumed").glob("wandb/offline-run-*/run-*.wandb"))
    recorded = [read_back(path) for path in of_starts]
    assert [one.config["recipe"]["save_interval"] for one in recorded] == ["2ba", "4ba"]
    assert len({one.run.run_id for one in recorded}) == 1


def test_an_argument_that_a_logger_does_not_know_is_refused_by_its_key(tiny):
    with pytest.raises(ConfigurationError, match=r"'loggers\.wandb': .*'proyect'"):
        wandb_logger(tiny, "unknown-argument", "loggers.wandb.proyect=x")
    with pytest.raises(ConfigurationError, match=r"'loggers\.mlflo': 'mlflo' is not known; did you mean 'mlflow'"):
        wandb_logger(tiny, "unknown-argument", "loggers.mlflo={}")


def test_a_secret_in_an_address_is_refused_and_not_repeated(tiny):
    for key in ("data.remote=s3://me:planted@store/data", "save_folder=s3://me:planted@store/runs"):
        with pytest.raises(ConfigurationError, match=key.partition("=")[0]) as refused:
            load_recipe(tiny.recipe, [key])
        assert "planted" not in str(refused.value)
