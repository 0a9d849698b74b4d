"""Run work on one rank for all, and report the first failure among the ranks.

When a rank fails, the others fail after it with connection errors of their own, or wait in a collective until it times
out. So a failing rank writes its reason, one line, to the store of the process group. Only the first line is kept.
The first rank of each node prints messages. It reads the store every second. It ends its process if another rank has
failed and its own main thread does not return from a collective; over NCCL it may never return. A rank that ends
without writing a line was killed, or crashed; the ranks of a node know each other's processes.

Over gloo, a collective that waits longer than `dist_timeout` raises an error. Over NCCL, torch aborts the process, and
no Python code of it can say why. So the first rank of each node warns, some seconds before, that no update has ended.
It only warns, because it cannot know that a collective waits: an update may take that long.

The store may not answer. Rank 0, which holds it, may have ended, and after a network failure no time-out of the store
ends a wait. So the store is read in threads, and no caller waits for them longer than a few seconds.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import psutil
import torch
from composer.utils import dist
from torch.distributed import DistError

from rotary_foundry.callbacks.graceful_stop import stop_requested
from rotary_foundry.callbacks.last_progress import seconds_without_progress
from rotary_foundry.compat.torch import default_store
from rotary_foundry.loggers.stage_progress import Bars
from rotary_foundry.runs.run_lock import release_held
from rotary_foundry.training.logs import log_failure, log_where_it_stands
from rotary_foundry.utils.errors import FAILED, REFUSED, Fault, FoundryError, StopRequested, print_error
from rotary_foundry.utils.processes import is_first_of_node

log = logging.getLogger(__name__)
Outcome = TypeVar("Outcome")
REASON = "rotary_foundry/reason"  # keys in the store
PROCESS = "rotary_foundry/process/"
LEFT = "rotary_foundry/left/"
STORE_ANSWERS = 6.0  # most seconds to wait for the store
LOOKS = 1.0  # seconds between two reads of the store
BEFORE = 10.0  # seconds from a warning until NCCL may abort this process
_seen: set[int] = set()  # ranks whose processes this one has seen alive; a rank in a container of its own sees none
COMES_BACK = 3.0  # seconds for a rank to notice another's failure itself, and for the other to report it


NO_ANSWER = (
    "no answer from other ranks within dist_timeout={:g} s: a node or the network failed, or a rank hangs; the same "
    "command resumes from the last checkpoint"
)


class NoAnswer(Fault):
    """A collective has failed, and this rank does not know why."""


def on_rank_zero(work: Callable[[], Outcome]) -> Outcome:
    """Run `work` on rank 0, and return its result or raise its exception on every rank."""
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
    """Run `work` on one rank of every node; if it raises on any of them, raise the exception on every rank."""
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
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end this process at once, as it does without a handler, while the block waits for other ranks.

    Composer's handler is Python code, which runs only after torch has stopped waiting for a rank that does not come.
    """
    handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


@contextmanager
def one_reason() -> Iterator[None]:
    """Turn any error that ends this rank into a FoundryError with the terminal message of the first failure.

    The error is a Fault unless the user can fix that failure. This rank's own error goes to its log, with the
    traceback.
    """
    try:
        yield
    except StopRequested:
        raise
    except Exception as error:
        status = FAILED if isinstance(error, Fault) or not isinstance(error, FoundryError) else REFUSED
        reason = f"{status} {log_failure(error)}"
        if torch.distributed.is_initialized():
            reason = _first_reason(error, reason)
        if not is_first_of_node() and stop_requested():  # the launcher sends the signal after another rank has ended
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            os.kill(os.getpid(), signal.SIGTERM)
        status, said = reason.split(" ", 1)
        raise (Fault if int(status) == FAILED else FoundryError)(said) from error


@contextmanager
def watching(dist_timeout: float) -> Iterator[None]:
    """Turn a collective's error in the block into a NoAnswer, and end this rank if another failed while it waits.

    Args:
        dist_timeout: seconds that a collective may take, for the message.
    """
    store, rank = default_store(), dist.get_global_rank()
    store.set(f"{PROCESS}{rank}", str(os.getpid()))
    over, watcher = threading.Event(), None
    if is_first_of_node():
        watcher = threading.Thread(target=_watch, args=(over, dist_timeout), daemon=True)
        watcher.start()
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, DistError) and "gloo" not in str(error):
            raise
        if "timed out" in str(error).lower() or "timeout" in str(error).lower():
            raise NoAnswer(NO_ANSWER.format(dist_timeout)) from error
        raise NoAnswer(
            "the connection to another rank was lost, and that rank reported no reason; "
            "the same command resumes from the last checkpoint"
        ) from error
    finally:
        over.set()
        _ask(lambda: store.set(f"{LEFT}{rank}", ""))
        if watcher is not None:
            watcher.join(STORE_ANSWERS)  # it reads the store, which may end with the process group


def _first_reason(error: Exception, own: str) -> str:
    """Return status and message of the first failure of any rank; `own` are those of this rank."""
    store = default_store()

    def ask() -> str:
        mine = own
        if isinstance(error, NoAnswer):
            until = time.monotonic() + COMES_BACK
            while not (killed := _killed()) and not store.check([REASON]) and time.monotonic() < until:
                time.sleep(0.1)
            mine = killed or own
        return store.compare_set(REASON, "", mine).decode()

    reason = _ask(ask) or own
    if is_first_of_node() and dist.get_world_size() > dist.get_local_world_size():
        time.sleep(2 * LOOKS)  # while the other nodes read the store, which this process may hold
    return reason


def _watch(over: threading.Event, dist_timeout: float) -> None:
    """End this process if another rank has failed and this one does not notice; warn if NCCL may abort it soon."""
    store, overdue, say_after = default_store(), False, max(dist_timeout - BEFORE, dist_timeout / 2)
    may_abort = torch.distributed.get_backend() != "gloo" and dist.get_world_size() > 1
    while not over.wait(LOOKS):
        was_overdue, overdue = overdue, may_abort and seconds_without_progress() >= say_after
        if overdue and not was_overdue:
            _say_overdue(dist_timeout)
        try:
            killed = _killed()
            if killed and overdue:  # torch aborted it, and will abort this process too
                killed = f"{FAILED} {NO_ANSWER.format(dist_timeout)}"
            failed = killed or (store.get(REASON).decode() if store.check([REASON]) else None)
            reason = failed and store.compare_set(REASON, "", failed).decode()
        except DistError:
            return  # rank 0 has ended: a collective will fail, or the launcher ends this process
        if reason is not None and not over.wait(COMES_BACK):
            status, said = reason.split(" ", 1)
            log_where_it_stands(f"another rank failed: {said}")
            Bars.take_off()
            print_error(said)
            time.sleep(2 * LOOKS)  # while the other nodes read the store, which may be ours
            release_held()
            os._exit(int(status))


def _say_overdue(dist_timeout: float) -> None:
    message = (
        f"no update has ended for {seconds_without_progress():.0f} s; if a rank hangs, or a node or the network "
        f"failed, this process is aborted when a collective has waited for dist_timeout={dist_timeout:g} s, and the "
        "same command resumes from the last checkpoint"
    )
    log.warning(message)
    print(f"warning: {message}", file=sys.stderr, flush=True)


def _killed() -> str | None:
    """Return status and message for a rank of this node that ended without reporting a reason; None if none did."""
    store = default_store()
    first = dist.get_global_rank() - dist.get_local_rank()
    for rank in range(first, first + dist.get_local_world_size()):
        if not store.check([f"{PROCESS}{rank}"]) or store.check([f"{LEFT}{rank}"]):
            continue
        if _lives(int(store.get(f"{PROCESS}{rank}"))):
            _seen.add(rank)
        elif rank in _seen:
            return (
                f"{FAILED} rank {rank} ended without reporting a reason: it was killed, by hand or by the kernel for "
                "lack of memory (see dmesg), or it crashed (see its log); the same command resumes from the last "
                "checkpoint"
            )
    return None


def _lives(process: int) -> bool:
    try:
        return psutil.Process(process).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def _ask(question: Callable[[], Outcome]) -> Outcome | None:
    """Return the store's answer; None if it does not answer in time."""
    answers: list[Outcome] = []

    def ask() -> None:
        with suppress(DistError):
            answers.append(question())

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(STORE_ANSWERS)
    return answers[0] if answers else None
