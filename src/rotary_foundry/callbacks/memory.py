"""Memory: the peak memory of an update, on the rank that used most.

On a GPU it is the peak that torch has allocated since the previous update. On CPU it is the memory of the process at
the end of the update, including shared libraries. Uses BATCH_END.
"""

import psutil
import torch
from composer.core import State

from rotary_foundry.callbacks.monitor import Monitor, Numbers


class Memory(Monitor):
    """Adds `memory_gb`, in 1e9 bytes."""

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
