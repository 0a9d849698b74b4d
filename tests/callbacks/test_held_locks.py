"""A run that has lost its folder ends before the callbacks that write."""

import pytest
from composer.core import Event, State
from composer.loggers import Logger

from rotary_foundry.callbacks.held_locks import HeldLocks
from rotary_foundry.runs.run_lock import LOCK, LockFile, RunLock
from rotary_foundry.utils.errors import FoundryError


@pytest.mark.parametrize("event", [Event.BATCH_END, Event.EVAL_END, Event.BATCH_CHECKPOINT])
def test_a_run_whose_lock_is_gone_ends_at_the_next_event_at_which_it_would_write(tmp_path, event):
    state, logger = State.__new__(State), Logger.__new__(Logger)  # neither is looked at
    with RunLock(LockFile(tmp_path, "runs_folder"), gone_after=0) as lock:  # which looks at every check
        callback = HeldLocks([lock])
        callback.run_event(event, state, logger)
        (tmp_path / LOCK).unlink()
        with pytest.raises(FoundryError, match="was removed while this process held it"):
            callback.run_event(event, state, logger)
    HeldLocks([]).run_event(event, state, logger)  # of any other rank
