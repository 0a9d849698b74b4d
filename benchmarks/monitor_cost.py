"""Measure the cost of the monitors in a nano run in which every other update runs without them.

The run is `yamls/main/nano.yaml`, in this process, on the shards that `make nano` leaves. It gives two figures:

- by pairs: the median ratio of an update with monitors to the mean of its two neighbours without, if they have as many
  rows. A user would see this cost. Other work on the machine makes single pairs vary by much more than 1 %.
- by timers: the seconds in the monitors' own code, timers included, plus what the optimizer's step with norms takes
  longer than its neighbours (the median). The sum is given as a share of the seconds of the updates with monitors.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

from recipe_cost import NANO, Spent

from rotary_foundry.callbacks.monitor import Monitor
from rotary_foundry.callbacks.optimizer_monitor import OptimizerMonitor
from rotary_foundry.callbacks.run_records import RunRecords
from rotary_foundry.callbacks.step_time import StepTime
from rotary_foundry.data.corpus import open_corpus
from rotary_foundry.loggers.stage_progress import StageProgress
from rotary_foundry.optim.stable_adamw import StableAdamW
from rotary_foundry.runs.recipes import load_recipe_and_plan
from rotary_foundry.training import run


@dataclass
class Update:
    rows: tuple[str, int]  # stage and rows: neighbours are compared if these are equal
    seconds: float  # from the request for the batch to the end of the records
    step: float  # seconds of these in the part of the optimizer's step that computes the norms


def of_a_nano_run() -> tuple[float, float, int]:
    """Return (share by pairs, share by timers, updates compared)."""
    updates: list[Update] = []  # the first without monitors, the second with them, and so on
    stepped, code = Spent(), Spent()
    stepped.on(StableAdamW, "_advance")
    code.on(StepTime, "_mark")
    for kind in Monitor.__subclasses__():
        for name in ("local", "measured"):
            if name in vars(kind):
                code.on(kind, name)

    class EveryOther(OptimizerMonitor):
        def batch_start(self, state, logger) -> None:
            super().batch_start(state, logger)
            state.optimizers[0].record_metrics = len(updates) % 2 == 1

        def batch_end(self, state, logger) -> None:
            if state.optimizers[0].record_metrics:
                super().batch_end(state, logger)

    run.OptimizerMonitor = EveryOther
    began = [0.0, 0.0]

    def before_dataloader(original: Callable, self: StepTime, state, logger) -> None:
        began[:] = time.perf_counter(), stepped.seconds
        if len(updates) % 2:
            original(self, state, logger)

    def batch_end(original: Callable, self: RunRecords, state, logger) -> None:
        monitors = self.monitors
        self.monitors = monitors if len(updates) % 2 else []
        original(self, state, logger)
        self.monitors = monitors
        alike = state.dataloader_label, len(self.batch["row_tokens"])
        updates.append(Update(alike, time.perf_counter() - began[0], stepped.seconds - began[1]))

    StageProgress.batch_end = lambda self, state, logger: None  # it prints what the monitors measure
    for owner, patch in ((StepTime, before_dataloader), (RunRecords, batch_end)):
        setattr(owner, patch.__name__, _with(patch, getattr(owner, patch.__name__)))
    with tempfile.TemporaryDirectory() as folder:
        recipe, plan = load_recipe_and_plan(NANO, [f"runs_folder={folder}", "progress_bar=false"])
        run.train(recipe, plan, open_corpus(recipe))
    return _shares(updates, code.seconds)


def _with(patch: Callable, original: Callable) -> Callable:
    return lambda self, state, logger: patch(original, self, state, logger)


def _shares(updates: list[Update], code_seconds: float) -> tuple[float, float, int]:
    ratios, lengthenings = [], []
    for before, monitored, after in zip(updates[0::2], updates[1::2], updates[2::2], strict=False):
        if before.rows == monitored.rows == after.rows:
            ratios.append(monitored.seconds / statistics.fmean([before.seconds, after.seconds]))
            lengthenings.append(monitored.step - statistics.fmean([before.step, after.step]))
    monitored = updates[1::2]
    by_timers = code_seconds + len(monitored) * statistics.median(lengthenings)
    return statistics.median(ratios) - 1, by_timers / sum(update.seconds for update in monitored), len(ratios)
