"""Monitor: a callback that adds numbers to every update's line in `metrics.jsonl`, and so to the loggers.

To add one: a class in a file of its own, a line for each of its keys in `metric_keys.py`, and its place in the list of
`training/run.py`. Nothing else knows of it.

What a monitor needs of the other ranks travels in the one gather that RunRecords makes at the end of an update: a
collective of each monitor's own would cost more than the monitors.
"""

from abc import ABC, abstractmethod

from composer.core import Callback, State

Numbers = dict[str, float]


class Monitor(Callback, ABC):
    """Both methods are called at BATCH_END, on every rank, in the order in which the monitors are listed."""

    def local(self, state: State) -> Numbers:
        """This rank's numbers of the update that has just ended."""
        return {}

    @abstractmethod
    def measured(self, state: State, ranks: list[Numbers]) -> dict[str, float | None]:
        """What the record gets, by key, from the numbers of all ranks in their order; None: cannot be told here."""

    def resume(self, records: list[dict]) -> None:
        """Called on rank 0 when training starts, with the lines of the run so far that hold, the oldest first."""
