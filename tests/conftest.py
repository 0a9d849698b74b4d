"""What tests of every folder may ask for."""

import os
from functools import partial
from itertools import count

import hypothesis
import pytest

hypothesis.settings.register_profile("any_machine", deadline=None)
hypothesis.settings.load_profile("any_machine")


@pytest.fixture
def numbers_of_our_own(monkeypatch):
    """Streaming numbers its shared memory from 0 to the first that is free, which two processes at a time both find."""
    from streaming.base.shared import prefix

    monkeypatch.setattr(prefix, "_each_prefix_int", partial(count, 1000 * os.getpid()))
