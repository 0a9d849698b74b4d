"""Monitor: a callback that adds numbers to every update's line in `metrics.jsonl`, and so to the loggers.

To add one, write a class in its own file, add a line for each of its keys to `metric_keys.py`, and add it to the list
in `training/run.py`. No other file needs a change.

RunRecords brings the numbers of all monitors from all ranks to rank 0 in one collective at the end of an update. A
collective for each monitor would cost more than the monitors themselves.
"""

from abc import ABC, abstractmethod

from composer.core import Callback, State

Numbers = dict[str, float]


class Monitor(Callback, ABC):
    """`local` is called on every rank at BATCH_END, `measured` on rank 0, in the order of the list of monitors."""

    def local(self, state: State) -> Numbers:
        """Return this rank's numbers of the update that has just ended; the keys are always the same."""
        return {}

    @abstractmethod
    def measured(self, state: State, ranks: list[Numbers]) -> dict[str, float | None]:
        """Compute values for the record, by key, from the numbers of all ranks, in rank order; None: unknown here."""

    def resume(self, records: list[dict]) -> None:
        """Use the run's valid lines so far, oldest first; called on rank 0 when training starts."""
