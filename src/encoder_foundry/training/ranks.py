"""What one rank does for all of them, or for those of its node, and what it tells them."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from composer.utils import dist
from torch.distributed import DistError, Store
from torch.distributed.distributed_c10d import _get_default_store

from encoder_foundry.errors import FoundryError

log = logging.getLogger(__name__)

Outcome = TypeVar("Outcome")
REASON = "encoder_foundry/reason"  # key in the store
STORE_ANSWERS = 5.0  # seconds


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


def on_each_node(work: Callable[[], object]) -> None:
    """Have one rank of every node do the work; an exception that one of them raised is raised on every rank."""
    error = None
    if dist.get_local_rank() == 0:
        try:
            work()
        except Exception as caught:  # raised below, on every rank
            error = caught
    for raised in dist.all_gather_object(error):
        if raised is not None:
            raise raised


@contextmanager
def one_reason() -> Iterator[None]:
    """Let a rank that fails because another has left the group say what that other one said.

    Its own error would be that of a collective whose connection was closed. What a rank cannot go on with is left in
    the store that the group was made by.
    """
    try:
        yield
    except (FoundryError, OSError) as error:
        if isinstance(error, OSError):  # the terminal gets one line
            log.error("a file could not be read or written", exc_info=error)
        _get_default_store().set(REASON, str(error))
        raise
    except RuntimeError as error:
        reason = _reason()
        if reason is None:
            raise
        raise FoundryError(reason) from error


def _reason() -> str | None:
    """What another rank left in the store; None if nothing, or if rank 0, which holds the store, does not answer.

    Asked for in a thread: where the network is cut, no time-out of the store's ends the wait for an answer.
    """
    answer: list[str] = []

    def ask(store: Store) -> None:
        with suppress(DistError):  # rank 0 is gone
            if store.check([REASON]):
                answer.append(store.get(REASON).decode())

    asking = threading.Thread(target=ask, args=(_get_default_store(),), daemon=True)
    asking.start()
    asking.join(STORE_ANSWERS)
    return answer[0] if answer else None
