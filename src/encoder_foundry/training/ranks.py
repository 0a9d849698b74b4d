"""What one rank does for all of them."""

from collections.abc import Callable
from typing import TypeVar

from composer.utils import dist

Outcome = TypeVar("Outcome")


def on_rank_zero(work: Callable[[], Outcome]) -> Outcome:
    """The outcome of rank 0's work, or the exception that it raised, on every rank."""
    outcome: list = [None, None]
    if dist.get_global_rank() == 0:
        try:
            outcome[0] = work()
        except Exception as error:  # raised below, on every rank
            outcome[1] = error
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
