"""SIGTERM stops a run after a checkpoint, whenever it comes."""

import os
import signal
import threading
import time
import weakref
from types import SimpleNamespace

import pytest
from composer.core import Timestamp
from composer.devices import DeviceCPU

from rotary_foundry.callbacks import graceful_stop
from rotary_foundry.callbacks.graceful_stop import GracefulStop
from rotary_foundry.compat.composer import exit_at_sigterm
from rotary_foundry.utils.errors import StopRequested


@pytest.fixture(autouse=True)
def signals_as_before():
    before = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for name, handler in before.items():
        signal.signal(name, handler)
    graceful_stop._requested.clear()


def at_update(batch: int, of: int = 9) -> SimpleNamespace:
    """What the callback looks at of Composer's state."""
    return SimpleNamespace(device=DeviceCPU(), timestamp=Timestamp(batch=batch), max_duration=f"{of}ba")


def stopping() -> tuple[GracefulStop, list[int]]:
    saved: list[int] = []
    saver = SimpleNamespace(save=lambda state, logger: saved.append(state.timestamp.batch.value))
    return GracefulStop(saver), saved


def test_a_signal_that_comes_while_a_rollback_changes_trainers_is_not_lost():
    (before, _), (after, saved) = stopping(), stopping()
    before.fit_start(at_update(0), None)
    os.kill(os.getpid(), signal.SIGTERM)
    after.fit_start(at_update(3), None)
    with pytest.raises(StopRequested, match="stopped as asked after update 4, which is saved"):
        after.batch_checkpoint(at_update(4), None)
    assert saved == [4]


def test_a_second_signal_exits_at_once():
    stop, saved = stopping()
    stop.fit_start(at_update(0), None)
    os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is exit_at_sigterm
    with pytest.raises(SystemExit):
        os.kill(os.getpid(), signal.SIGTERM)
    assert saved == []


class Dying:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)


def finalized() -> None:
    weakref.finalize(threading.Event(), os.kill, os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("die", [Dying, finalized])
def test_a_signal_that_comes_within_a_finalizer_exits_a_moment_later(die):
    """Python drops an exception there."""
    signal.signal(signal.SIGTERM, exit_at_sigterm)
    with pytest.raises(SystemExit) as ended:
        die()
        time.sleep(30)
    assert ended.value.code == 128 + signal.SIGTERM


def test_sigusr1_may_come_early_and_often():
    stop, saved = stopping()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})  # as launch/stoppable.py starts a rank, all its threads
    signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)  # here others have not
    stop.fit_start(at_update(0), None)
    os.kill(os.getpid(), signal.SIGUSR1)
    with pytest.raises(StopRequested):
        stop.batch_checkpoint(at_update(1), None)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert saved == [1]


def test_a_run_that_is_done_anyway_just_ends():
    stop, saved = stopping()
    stop.fit_start(at_update(0), None)
    os.kill(os.getpid(), signal.SIGTERM)
    stop.batch_checkpoint(at_update(9), None)
    assert saved == []


def test_without_a_signal_nothing_happens():
    stop, saved = stopping()
    stop.fit_start(at_update(0), None)
    stop.batch_checkpoint(at_update(4), None)
    assert saved == []
