"""Throughput: real tokens per second, and the share of the devices' peak that the model's operations use (MFU).

Tokens are counted without padding. Operations are counted as in `recipe/cost.py`, but from the actual lengths and
predicted tokens of the update's documents: attention has fewer pairs for documents that share a row than for one that
fills it.

An update's time is from the end of the previous update to its own end, as in Composer's SpeedMonitor. It includes the
records, the loggers and a checkpoint, but no evaluations. Uses FIT_START, BATCH_START, EVAL_START, EVAL_END and
BATCH_END.
"""

import time

import torch
from composer.core import State
from composer.loggers import Logger

from rotary_foundry.callbacks.monitor import Monitor, Numbers
from rotary_foundry.recipe.cost import peak_flops
from rotary_foundry.recipe.schema import Recipe


class Throughput(Monitor):
    """Adds `tokens_per_second` of all devices together, and `mfu`, which is None except for bf16 on known GPUs.

    Args:
        recipe: gives the model's shape and the precision.
    """

    def __init__(self, recipe: Recipe):
        self.shape = recipe.model.shape
        self.since = 0.0  # a grown model is evaluated before training starts
        on_gpu = torch.cuda.is_available() and recipe.precision == "amp_bf16"
        self.peak = peak_flops(torch.cuda.get_device_name()) if on_gpu else None

    def fit_start(self, state: State, logger: Logger) -> None:
        self.since = time.perf_counter()  # `eval_end` adds the time of evaluations

    def eval_start(self, state: State, logger: Logger) -> None:
        self.evaluation = time.perf_counter()

    def eval_end(self, state: State, logger: Logger) -> None:
        self.since += time.perf_counter() - self.evaluation

    def batch_start(self, state: State, logger: Logger) -> None:
        self.batch = state.batch  # whole, and on the host: later it is split and moved

    def local(self, state: State) -> Numbers:
        tokens = sum(self.batch["row_tokens"])
        predicted = sum(self.batch["row_labels"])
        flops = self.shape.matmul_flops(tokens, predicted) + self.shape.attention_flops(self.batch["lengths"])
        now = time.perf_counter()
        seconds, self.since = now - self.since, now
        return {"tokens": tokens, "flops": flops, "seconds": seconds}

    def measured(self, state: State, ranks: list[Numbers]) -> dict[str, float | None]:
        seconds = max(rank["seconds"] for rank in ranks)
        mfu = None
        if self.peak is not None:
            mfu = sum(rank["flops"] for rank in ranks) / (seconds * len(ranks) * self.peak)
        return {"tokens_per_second": sum(rank["tokens"] for rank in ranks) / seconds, "mfu": mfu}
