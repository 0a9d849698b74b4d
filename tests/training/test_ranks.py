"""A rank that fails says to the others whether the same command may go on, and all end with the status of the first."""

import time
from contextlib import suppress

import pytest
from torch import distributed
from torch.multiprocessing import ProcessExitedException

from rotary_foundry.training.ranks import one_reason, watching
from rotary_foundry.utils.errors import FAILED, REFUSED, DataError, Fault, FoundryError

from ..ranks import on_ranks


def _in_a_collective(error: Exception, fault: bool) -> None:
    with pytest.raises(FoundryError, match="boom") as ended, one_reason(), watching(60):
        if distributed.get_rank() == 1:
            raise error
        distributed.barrier()
    assert isinstance(ended.value, Fault) == fault


@pytest.mark.parametrize(
    ("error", "fault"),
    [(DataError("boom"), False), (Fault("boom"), True), (ValueError("boom"), True), (OSError("boom"), True)],
)
def test_a_rank_in_a_collective_ends_as_the_first_that_failed(tmp_path, error, fault):
    on_ranks(2, tmp_path, _in_a_collective, error, fault)


def _elsewhere(error: Exception) -> None:
    with suppress(FoundryError), one_reason(), watching(60):
        if distributed.get_rank() == 1:
            raise error
        time.sleep(60)
    time.sleep(60)  # the other one is to end first


@pytest.mark.parametrize(("error", "status"), [(DataError("boom"), REFUSED), (ValueError("boom"), FAILED)])
def test_a_rank_that_does_not_come_back_ends_with_the_status_of_the_first_that_failed(tmp_path, error, status):
    with pytest.raises(ProcessExitedException) as ended:
        on_ranks(2, tmp_path, _elsewhere, error)
    assert ended.value.exit_code == status
