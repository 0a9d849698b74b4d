"""StepTime: the time of each part of an update: waiting for data, forward, backward, optimizer, communication.

Every moment of an update is counted once. A `PhaseClock` marks where one part ends and another begins; communication
inside a forward pass, say, interrupts `forward`. What is left of the step belongs to no part: Composer's own work,
splitting a batch, copying it to the device.

- On a GPU the marks are CUDA events on the compute stream, read after the update. Nothing waits for them: Composer has
  by then waited for the loss, and so for all before it. So a part is the time that the compute stream spent in it, and
  communication the time that it stood still for it: what overlaps with computing is not seen, since it costs nothing.
- On CPU the marks are the process's clock. Collectives over gloo return when they are done, so communication is all of
  it, the waiting for slower ranks included.
- Communication is what FSDP2 does to gather parameters and to reduce gradients, with the copying that it takes,
  the optimizer's sum over shards, and Composer's all-reduces. FSDP2 has no hooks around its methods, so compat/torch.py
  replaces them; the two functions are replaced in their modules while training lasts. Profiling every so many updates
  was left out: it stalls a step for seconds, and says nothing of the others.
- The step is from asking for a batch to the end of its update. Evaluation, checkpoints and the change of segments are
  no part of it.

Uses FIT_START, BEFORE_DATALOADER, AFTER_DATALOADER, BEFORE_FORWARD, AFTER_LOSS, BEFORE_BACKWARD, AFTER_BACKWARD,
AFTER_TRAIN_BATCH, BATCH_END and CLOSE.
"""

import functools
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from composer.core import State
from composer.loggers import Logger
from composer.utils import dist

from rotary_foundry.callbacks.monitor import Monitor, Numbers
from rotary_foundry.compat.torch import wrap_collectives
from rotary_foundry.optim import sharded_sums

PARTS = ("data", "forward", "backward", "optimizer", "communication")
OTHER = "other"


class PhaseClock:
    """Divides time into phases, one at a time. It does not count between `stop` and `start`."""

    def __init__(self, on_gpu: bool):
        self.on_gpu = on_gpu
        self.phases: list[str] = []  # those entered, the innermost last
        self.marks: list[tuple[Any, str]] = []  # a moment, and the phase that begins there
        self.spare: list[torch.cuda.Event] = []  # of updates past

    def start(self) -> None:
        self.phases = [OTHER]
        self.marks = []
        self._mark()

    def enter(self, phase: str) -> None:
        if self.phases:
            self.phases.append(phase)
            self._mark()

    def leave(self) -> None:
        if self.phases:
            self.phases.pop()
            self._mark()

    def stop(self) -> Numbers:
        """Return seconds by phase since the start."""
        self._mark()
        self.phases = []
        seconds: Numbers = {}
        if self.on_gpu:
            self.marks[-1][0].synchronize()
        for (begin, phase), (end, _) in pairwise(self.marks):
            passed = begin.elapsed_time(end) / 1000 if self.on_gpu else end - begin
            seconds[phase] = seconds.get(phase, 0.0) + passed
        if self.on_gpu:
            self.spare += [event for event, _ in self.marks]
        return seconds

    def around(self, function: Callable, phase: str) -> Callable:
        """Return the function, with its time counted in the phase."""

        @functools.wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            self.enter(phase)
            try:
                return function(*arguments, **options)
            finally:
                self.leave()

        return timed

    def _mark(self) -> None:
        if self.on_gpu:
            moment = self.spare.pop() if self.spare else torch.cuda.Event(enable_timing=True)
            moment.record()
        else:
            moment = time.perf_counter()
        self.marks.append((moment, self.phases[-1]))


class StepTime(Monitor):
    """`step_seconds`, of the slowest rank, and `data_seconds`, `forward_seconds`, …, means over the ranks.

    `seconds` and `step_seconds` hold this rank's own of the last update, for other monitors.
    """

    def __init__(self):
        self.clock = PhaseClock(on_gpu=torch.cuda.is_available())
        self.wrapped: list[tuple[Any, str, Callable]] = []
        self.seconds: Numbers = {}

    @property
    def step_seconds(self) -> float:
        return sum(self.seconds.values())

    def fit_start(self, state: State, logger: Logger) -> None:
        wrap_collectives(state.model, functools.partial(self.clock.around, phase="communication"))
        for owner, name in ((dist, "all_reduce"), (sharded_sums, "sum_over_shards")):
            self.wrapped.append((owner, name, getattr(owner, name)))
            setattr(owner, name, self.clock.around(getattr(owner, name), "communication"))
        # from AFTER_TRAIN_BATCH on: Composer hands the forward and backward passes to the step, as its closure
        state.optimizers[0].register_step_post_hook(lambda *_: self.clock.leave())

    def before_dataloader(self, state: State, logger: Logger) -> None:
        self.clock.start()
        self.clock.enter("data")

    def after_dataloader(self, state: State, logger: Logger) -> None:
        self.clock.leave()

    def before_forward(self, state: State, logger: Logger) -> None:
        self.clock.enter("forward")

    def after_loss(self, state: State, logger: Logger) -> None:
        self.clock.leave()

    def before_backward(self, state: State, logger: Logger) -> None:
        self.clock.enter("backward")

    def after_backward(self, state: State, logger: Logger) -> None:
        self.clock.leave()

    def after_train_batch(self, state: State, logger: Logger) -> None:
        self.clock.enter("optimizer")

    def local(self, state: State) -> Numbers:
        self.seconds = self.clock.stop()
        return {part: self.seconds.get(part, 0.0) for part in PARTS} | {"step": self.step_seconds}

    def measured(self, state: State, ranks: list[Numbers]) -> dict[str, float | None]:
        parts = {f"{part}_seconds": statistics.fmean(rank[part] for rank in ranks) for part in PARTS}
        return {"step_seconds": max(rank["step"] for rank in ranks)} | parts

    def close(self, state: State, logger: Logger) -> None:
        for owner, name, function in self.wrapped:
            setattr(owner, name, function)
        self.wrapped = []
