"""StepTime: measure how long an update takes, how long it waits for data, and which rank the others wait for.

All ranks of a synchronous update end it together, so a rank's step time does not show which one is slow. Its own work
does: the wait for data, and the forward passes of the layers, as a sample of its computation. Forward hooks on a layer
run inside FSDP2's own, after the parameters are gathered, so the time between them has no communication. On a GPU they
record CUDA events on the compute stream, which are read after the update, when Composer has already waited for the
loss. On CPU they read the clock. The hooks stay outside a compiled `forward`.

To see where the rest of a step goes, use a profiler: Composer's `Profiler`, or PyTorch's.

A step lasts from the request for a batch to the end of its update. Evaluation, checkpoints and the change of segments
are not part of it. Uses FIT_START, BEFORE_DATALOADER, AFTER_DATALOADER and BATCH_END.
"""

import statistics
import time
from typing import Any

import torch
from composer.core import State
from composer.loggers import Logger

from rotary_foundry.callbacks.monitor import Monitor, Numbers


class StepTime(Monitor):
    """Adds `step_seconds` (of the slowest rank), `data_seconds` (the ranks' mean), `slowest_rank` and `slowest_lag`.

    `slowest_rank` is the rank with the most work of its own, and `slowest_lag` is that work divided by the ranks'
    median, minus 1. With one rank it is 0.
    """

    def __init__(self):
        self.on_gpu = torch.cuda.is_available()
        self.began = self.data_seconds = 0.0
        self.marks: list[Any] = []  # a layer's start, its end, the next layer's start, …

    def fit_start(self, state: State, logger: Logger) -> None:
        for layer in state.model.network.blocks:
            layer.register_forward_pre_hook(self._mark)
            layer.register_forward_hook(self._mark)

    def before_dataloader(self, state: State, logger: Logger) -> None:
        self.marks = []
        self.began = time.perf_counter()

    def after_dataloader(self, state: State, logger: Logger) -> None:
        self.data_seconds = time.perf_counter() - self.began

    def local(self, state: State) -> Numbers:
        if self.on_gpu:
            self.marks[-1].synchronize()
        layers = zip(self.marks[::2], self.marks[1::2], strict=True)
        forward = sum(begin.elapsed_time(end) / 1000 if self.on_gpu else end - begin for begin, end in layers)
        step = time.perf_counter() - self.began
        return {"step": step, "data": self.data_seconds, "work": self.data_seconds + forward}

    def measured(self, state: State, ranks: list[Numbers]) -> dict[str, float | None]:
        work = [rank["work"] for rank in ranks]
        slowest = max(range(len(work)), key=work.__getitem__)
        return {
            "step_seconds": max(rank["step"] for rank in ranks),
            "data_seconds": statistics.fmean(rank["data"] for rank in ranks),
            "slowest_rank": slowest,
            "slowest_lag": work[slowest] / statistics.median(work) - 1,
        }

    def _mark(self, *_: Any) -> None:
        if self.on_gpu:
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()
        else:
            self.marks.append(time.perf_counter())
