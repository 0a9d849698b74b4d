"""Rollbacks in whole runs on two ranks, by real trouble: a learning rate too large, a loss that cannot fall enough."""

import weakref
from pathlib import Path

import pytest

from rotary_foundry import compile_plan, load_recipe
from rotary_foundry.callbacks.checkpoint_saver import CompleteCheckpointSaver
from rotary_foundry.callbacks.loss_watch import LossWatch
from rotary_foundry.data.corpus import open_corpus
from rotary_foundry.recipe.schema import PlateauTrigger, RollbackConfig, SpikeTrigger
from rotary_foundry.runs.recipes import load_recipe_and_plan
from rotary_foundry.runs.record_files import read_lines
from rotary_foundry.runs.run_folder import CompleteCheckpoint, RunFolder
from rotary_foundry.training import run

from ..ranks import on_ranks
from .runs import column, records


def ledger(tiny, name: str) -> list[dict]:
    return read_lines(RunFolder(tiny.folder / "runs" / name).ledger)


def test_the_set_rollback_happened_where_the_plan_has_it(tiny, undisturbed):
    plan = compile_plan(load_recipe(tiny.recipe))
    (line,) = read_lines(RunFolder(undisturbed).ledger)
    abandoned = plan.abandoned
    assert (line["token"], line["to_token"]) == (abandoned[-1].end_token, abandoned[0].start_token)
    assert (line["lr"], line["weight_decay"], line["data"]) == (4e-3, 1e-3, "advance")
    assert line["why"] == "the recipe sets it: token 5_000 is reached"
    assert f"rollback 1 (at): {line['why']}" in (undisturbed / "logs/rank0.log").read_text()
    saved = {path.name for path in (undisturbed / "abandoned/1").iterdir()}
    assert saved == {"ba8", "ba10"}


def test_data_that_advances_are_rows_that_the_abandoned_stretch_did_not_have(tiny, undisturbed):
    (line,) = read_lines(RunFolder(undisturbed).ledger)
    written = read_lines(RunFolder(undisturbed).metrics)
    abandoned = [record for record in written if record["rollbacks"] == 0 and record["batch"] > line["to_batch"]]
    assert [record["batch"] for record in abandoned] == [8, 9, 10, 11]
    assert not {record["rows_digest"] for record in abandoned} & set(column(undisturbed, "rows_digest"))


@pytest.mark.long
def test_a_plateau_goes_back_to_the_checkpoint_before_it_began_until_there_were_too_many(tiny):
    run = tiny.launch(
        *("run_name=flat", "save_interval=1ba", "rollback.at=null", "rollback.max_rollbacks=1"),
        "rollback.plateau={window: 2000tok, min_delta: 9, lr: 1e-3}",  # no loss falls by nine nats here
    )
    assert run.returncode == 2
    (line,) = ledger(tiny, "flat")
    assert (line["trigger"], line["to_batch"]) == ("plateau", 1)
    assert line["token"] - line["to_token"] >= 2000
    assert "rollback.max_rollbacks, 1, is reached" in run.stderr
    assert "the smoothed loss is" in run.stderr
    kept = column(tiny.folder / "runs/flat", "lr")
    assert max(kept) <= 1e-3  # the peak of the stage it went back to


def test_a_loss_that_is_no_number_goes_back_and_goes_on_to_the_end(tiny):
    run = tiny.launch(
        *("run_name=burst", "rollback.at=null", "stages.extend.lr=1e30", "save_interval=6ba"),
        "rollback.non_finite={lr: 3e-3}",
    )
    assert run.returncode == 0, run.stderr[-4000:]
    (line,) = ledger(tiny, "burst")
    assert (line["trigger"], line["batch"], line["to_batch"]) == ("non_finite", 13, 12)
    assert all(record["loss"] < 10 for record in records(tiny.folder / "runs/burst"))


@pytest.mark.long
def test_without_a_trigger_a_loss_that_is_no_number_ends_the_run_and_leaves_the_last_checkpoint(tiny):
    run = tiny.launch("run_name=nan", "rollback.at=null", "stages.extend.lr=1e30")
    assert run.returncode == 2
    (error,) = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert "at token 7_168 the update's norm is inf; the last checkpoint before it is" in error
    assert "checkpoints/ba12. Change the recipe for later tokens and resume" in error
    assert RunFolder(tiny.folder / "runs/nan").newest_checkpoint().batch == 12
    mended = tiny.launch("run_name=nan", "rollback.at=null", "stages.extend.lr=3e-3")
    assert mended.returncode == 0, mended.stderr[-4000:]
    assert all(record["loss"] < 10 for record in records(tiny.folder / "runs/nan"))


@pytest.mark.long
def test_a_spike_is_gone_back_from(tiny):
    run = tiny.launch(
        *("run_name=spike", "rollback.at=null", "stages.pretrain.duration=24_000tok", "stages.pretrain.lr=1e-9"),
        "rollback.spike={z_score: 0.01, patience: 2, data: advance}",  # of a loss that only jitters
        "rollback.max_rollbacks=1",
    )
    first = ledger(tiny, "spike")[0]
    assert first["trigger"] == "spike"
    assert "robust deviations" in first["why"]
    assert first["to_token"] <= first["token"] - 3 * 768
    if run.returncode != 0:  # it may well jitter again
        assert "rollback.max_rollbacks, 1, is reached" in run.stderr


def _train_watching_memory(recipe_path: Path) -> None:
    """Train; each new model is made when nothing of the one before is left."""
    recipe, plan = load_recipe_and_plan(recipe_path, ["run_name=freed"])
    models: list[weakref.ref] = []
    build = run.build_trainer

    def build_trainer(*arguments):
        assert [model() for model in models] == [None] * len(models)
        trainer = build(*arguments)
        models.append(weakref.ref(trainer.state.model))
        return trainer

    run.build_trainer = build_trainer
    run.train(recipe, plan, open_corpus(recipe))
    assert len(models) == 2


@pytest.mark.long
def test_a_rollback_gives_the_memory_of_the_old_model_back_before_it_makes_the_new_one(tiny, tmp_path):
    on_ranks(1, tmp_path, _train_watching_memory, tiny.recipe)


@pytest.mark.parametrize(
    ("config", "losses", "kept"),
    [
        (RollbackConfig(plateau=PlateauTrigger(window="900tok", min_delta=0.5)), [8, 7, 6, 6, 6, 6], [3, 6]),
        (
            RollbackConfig(spike=SpikeTrigger(z_score=6, patience=5, lr=1e-4)),
            [*(5 + update % 7 / 20 for update in range(20)), 9, 9, 9],
            [19, 23],
        ),
    ],
    ids=["plateau", "spike"],
)
def test_the_checkpoint_before_a_trouble_that_is_only_beginning_is_kept(tmp_path, config, losses, kept):
    watch, folder = LossWatch(config), RunFolder(tmp_path)
    saver = CompleteCheckpointSaver(folder, "1ba", set(), 1, 0, False, watch, set(), None, None)
    for update, loss in enumerate(losses, 1):
        assert watch.observe("pretrain", update * 100, 100, loss) is None
    there = [
        CompleteCheckpoint(folder.checkpoints / f"ba{update}", update, update * 100, 0, {}, {})
        for update in range(1, len(losses) + 1)
    ]
    outdated = saver._outdated(there)
    assert [checkpoint.batch for checkpoint in there if checkpoint not in outdated] == kept
