"""Measure the cost of the recipe itself: clock, plan and masking in a whole nano run, and saving a checkpoint.

The run is `yamls/main/nano.yaml`, in this process, on the shards that `make nano` leaves, with a timer around all code
that uses the plan or masks a row. The time of `SegmentSwitch` includes the loaders that it makes.
"""

import functools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from measure import timed
from torch.distributed import checkpoint as dist_cp

from rotary_foundry.algorithms.segment_switch import SegmentSwitch
from rotary_foundry.callbacks.checkpoint_saver import CompleteCheckpointSaver
from rotary_foundry.data import row_preparation
from rotary_foundry.data.corpus import open_corpus
from rotary_foundry.models.family import Shape
from rotary_foundry.objectives.masked_lm import MaskedLM
from rotary_foundry.runs.recipes import load_recipe_and_plan
from rotary_foundry.training import run

NANO = Path(__file__).parents[1] / "yamls/main/nano.yaml"


@dataclass
class Spent:
    seconds: float = 0.0
    calls: int = 0

    def on(self, owner: object, name: str) -> None:
        """Time a function from now on, wherever it is called."""
        function: Callable = getattr(owner, name)

        @functools.wraps(function)
        def counted(*args, **kwargs):
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start
                self.calls += 1

        setattr(owner, name, counted)


def of_a_nano_run() -> dict[str, Spent]:
    """Return seconds and calls of each part, in a run of one process; "the run" is all of its updates."""
    spent = {name: Spent() for name in ("clock and plan", "masking", "checkpoints", "the run")}
    spent["clock and plan"].on(SegmentSwitch, "apply")
    spent["masking"].on(MaskedLM, "prepare")
    spent["masking"].on(row_preparation, "row_generator")
    spent["checkpoints"].on(CompleteCheckpointSaver, "write")
    spent["the run"].on(run.Trainer, "fit")
    with tempfile.TemporaryDirectory() as folder:
        recipe, plan = load_recipe_and_plan(NANO, [f"runs_folder={folder}", "progress_bar=false"])
        run.train(recipe, plan, open_corpus(recipe))
    return spent


def of_a_checkpoint(shape: Shape) -> tuple[float, float, float]:
    """Return (GB, seconds to copy in memory, seconds to write) of a model's weights and moments, in one process."""
    state = {
        f"{kind}.{name}": torch.randn(size)
        for kind in ("weights", "exp_avg", "exp_avg_sq")
        for name, size in shape.parameter_shapes().items()
    }
    gigabytes = sum(map(torch.Tensor.nelement, state.values())) * 4 / 1e9
    copied: dict[str, torch.Tensor] = {}
    copying = timed(lambda: copied.update({name: tensor.clone() for name, tensor in state.items()}))
    with tempfile.TemporaryDirectory() as folder:
        writing = timed(lambda: dist_cp.save(copied, checkpoint_id=folder, no_dist=True))
    return gigabytes, copying, writing
