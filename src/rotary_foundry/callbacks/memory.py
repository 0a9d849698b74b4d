"""Memory: how much of its device an update took at most, on the rank where that was most.

On a GPU what torch had allocated at its peak since the update before; on CPU what the process has in memory at the end
of the update, its share of the libraries included. Uses BATCH_END.
"""

import psutil
import torch
from composer.core import State

from rotary_foundry.callbacks.monitor import Monitor, Numbers


class Memory(Monitor):
    """`memory_gb`, in 1e9 bytes."""

    def __init__(self):
        self.process = psutil.Process()

    def local(self, state: State) -> Numbers:
        if not torch.cuda.is_available():
            return {"bytes": self.process.memory_info().rss}
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return {"bytes": peak}

    def measured(self, state: State, ranks: list[Numbers]) -> dict[str, float | None]:
        return {"memory_gb": max(rank["bytes"] for rank in ranks) / 1e9}
