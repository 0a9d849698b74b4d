"""A user's class joins a run without a fork; one that cannot is refused by key, before a process group."""

import json
import re

import pytest
from composer.callbacks import LRMonitor
from composer.core import Algorithm, Callback, Event, State
from composer.loggers import FileLogger, Logger, LoggerDestination

from rotary_foundry import load_recipe
from rotary_foundry.runs.record_files import read_lines
from rotary_foundry.runs.run_folder import RunFolder
from rotary_foundry.training.extensions import check_extensions, extensions
from rotary_foundry.training.loggers import loggers
from rotary_foundry.utils.errors import ConfigurationError

HERE = __name__


class EveryFew(Callback):
    """Writes down the loss of every few updates, as the run's own records have it."""

    def __init__(self, every: int, path: str):
        self.every = every
        self.path = path

    def batch_end(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch.value % self.every == 0:
            line = {"batch": state.timestamp.batch.value, "loss": state.total_loss_dict["loss/train/total"]}
            with open(self.path, "a") as file:
                file.write(json.dumps(line) + "\n")


class NoDecay(Algorithm):
    """Takes the weight decay away after SegmentSwitch has set it."""

    def match(self, event: Event, state: State) -> bool:
        return event == Event.BATCH_START

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        for group in state.optimizers[0].param_groups:
            group["weight_decay"] = 0.0


class Keys(LoggerDestination):
    """Writes down the name of every metric."""

    def __init__(self, path: str):
        self.path = path

    def log_metrics(self, metrics: dict, step: int | None = None) -> None:
        with open(self.path, "a") as file:
            file.write("".join(f"{name}\n" for name in metrics))


NOT_A_CALLBACK = 3


def test_a_run_has_composers_callbacks_and_a_users_own_classes(tiny, tmp_path):
    run = tiny.launch(
        "run_name=extended",
        "rollback={at: null}",
        "save_interval=100ba",
        f"callbacks={{lr_monitor: {{}}, {HERE}.EveryFew: {{every: 4, path: {tmp_path}/losses.jsonl}}}}",
        f"algorithms={{{HERE}.NoDecay: {{}}}}",
        f"loggers={{{HERE}.Keys: {{path: {tmp_path}/keys}}, console: null}}",
        ranks=1,
        PYTHONPATH=":".join(__import__("sys").path),
    )
    assert run.returncode == 0, run.stderr[-4000:]
    lines = read_lines(RunFolder(tiny.folder / "runs/extended").metrics)
    assert {line["weight_decay"] for line in lines} == {0.0}
    kept = [{key: line[key] for key in ("batch", "loss")} for line in lines if line["batch"] % 4 == 0]
    assert read_lines(tmp_path / "losses.jsonl") == kept
    keys = (tmp_path / "keys").read_text().split()
    assert {"loss/train", "lr-StableAdamW/group0"} <= set(keys)


def check(tiny, *overrides: str) -> None:
    check_extensions(load_recipe(tiny.recipe, overrides))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "callbacks={absent_package.Mine: {}}",
            "'callbacks.absent_package.Mine': No module named 'absent_package'; ins",
        ),
        (f"callbacks={{{HERE}.Absent: {{}}}}", f"'callbacks.{HERE}.Absent': module '{HERE}' has no attribute 'Absent'"),
        (f"callbacks={{{HERE}.NOT_A_CALLBACK: {{}}}}", "is not a class derived from composer.core.callback.Callback"),
        (f"callbacks={{{HERE}.NoDecay: {{}}}}", "is not a class derived from composer.core.callback.Callback"),
        (f"algorithms={{{HERE}.EveryFew: {{}}}}", "is not a class derived from composer.core.algorithm.Algorithm"),
        (f"callbacks={{{HERE}.EveryFew: {{evry: 3}}}}", "EveryFew takes no argument 'evry'; did you mean 'every'?"),
        (f"callbacks={{{HERE}.EveryFew: {{every: 3}}}}", "EveryFew needs the argument 'path', which is missing"),
        (f"algorithms={{{HERE}.NoDecay: {{every: 3}}}}", "NoDecay takes no argument 'every'; it takes none"),
        ("callbacks.memory_monitor={evry: 3}", "'callbacks.memory_monitor': MemoryMonitor takes no argument 'evry'"),
        ("loggers.wandb={proyect: x}", "'loggers.wandb': WandBLogger takes no argument 'proyect'; did you mean 'proj"),
        ("callbacks={composer.callbacks.CheckpointSaver: {}}", "a run saves its checkpoints itself"),
        ("algorithms={composer.algorithms.SAM: {}}", "changes the optimizer, which 'optimizer' decides"),
    ],
)
def test_a_class_that_cannot_join_is_refused_by_key(tiny, override, says):
    with pytest.raises(ConfigurationError) as refused:
        check(tiny, override)
    assert says in str(refused.value)
    assert re.match(r"'(callbacks|algorithms|loggers)\.", str(refused.value))


def test_a_module_that_fails_when_it_is_imported_is_named(tiny, tmp_path, monkeypatch):
    (tmp_path / "breaks.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigurationError, match=r"'callbacks\.breaks\.Mine': the import fails: division by zero"):
        check(tiny, "callbacks={breaks.Mine: {}}")


def test_the_launch_refuses_it_before_a_process_group(tiny):
    run = tiny.launch_rank(0, "run_name=refused", "callbacks={absent_package.Mine: {}}")
    assert run.returncode == 2
    assert "'callbacks.absent_package.Mine': No module named 'absent_package'" in run.stderr
    assert not (tiny.folder / "runs/refused").exists()


def test_a_value_that_a_class_refuses_is_reported_by_key(tiny):
    recipe = load_recipe(tiny.recipe, ["callbacks.memory_monitor={dist_aggregate_batch_interval: 3}"])
    (made,) = extensions(load_recipe(tiny.recipe, ["callbacks.lr_monitor={}"]), "callbacks")
    assert isinstance(made, LRMonitor)
    assert len(extensions(recipe, "callbacks")) == 1
    refused = load_recipe(tiny.recipe, ["callbacks.early_stopper={monitor: x, dataloader_label: y, patience: soon}"])
    with pytest.raises(ConfigurationError, match=r"'callbacks\.early_stopper': "):
        extensions(refused, "callbacks")


def test_the_loggers_of_a_run_come_before_those_that_a_recipe_adds(tiny):
    recipe = load_recipe(tiny.recipe, ["run_name=two", "loggers={file: {}, tensorboard: {}}"])
    kinds = [type(each).__name__ for each in loggers(recipe, RunFolder.of(recipe))]
    assert kinds == ["TensorboardLogger", FileLogger.__name__]
