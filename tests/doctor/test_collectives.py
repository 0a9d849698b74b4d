"""The collectives over gloo, on real ranks: right, wrong, and not coming back."""

import time

import pytest
from torch import distributed
from torch.multiprocessing import ProcessExitedException

from rotary_foundry.doctor import collectives
from rotary_foundry.doctor.finding import BAD, GOOD

from ..ranks import on_ranks


def _right() -> None:
    collectives.BYTES = 2**22  # smaller messages than the doctor's, to be quick
    found = collectives.try_out()
    world = distributed.get_world_size()
    assert found.mark == GOOD, found
    assert found.said.startswith(f"gloo over {world} ranks: sums are right; bus bandwidth all-reduce ")
    rates = [float(rate.split()[-2]) for rate in found.said.split(" bandwidth ")[1].split(", ")]
    assert len(rates) == 2
    assert all(0 < rate < 1000 for rate in rates)


def test_every_rank_finds_the_sums_right_and_a_bandwidth(tmp_path):
    on_ranks(3, tmp_path, _right)


def _one_rank_takes_no_part() -> None:
    collectives.BYTES = 2**22
    distributed.all_reduce = lambda tensor: None  # stands for a link that loses what is sent, without an error
    found = collectives.try_out()
    assert found.mark == BAD
    assert found.said == "gloo over 2 ranks: wrong sums in all-reduce"


def test_wrong_sums_are_named_on_every_rank(tmp_path):
    on_ranks(2, tmp_path, _one_rank_takes_no_part)


def _one_rank_never_comes(said) -> None:
    collectives.DEADLINE_SECONDS = 1.0
    if distributed.get_rank() == 1:
        time.sleep(30)
        return
    with collectives.deadline(lambda why: said.write_text(why)):
        collectives.try_out()


def test_ranks_that_do_not_come_back_end_the_doctor_with_status_1_and_a_reason(tmp_path):
    start = time.monotonic()
    with pytest.raises(ProcessExitedException, match="process 0 terminated with exit code 1"):
        on_ranks(2, tmp_path, _one_rank_never_comes, tmp_path / "said")
    assert (tmp_path / "said").read_text() == "2 ranks met, but not all of them returned after 1.0 s"
    assert time.monotonic() - start < 25


def _the_peer_is_gone() -> None:
    if distributed.get_rank() == 1:
        return
    with pytest.raises(RuntimeError, match=r"(?i)connection|peer"):
        collectives.try_out()


def test_a_peer_that_has_gone_is_an_error_that_the_doctor_reports(tmp_path):
    on_ranks(2, tmp_path, _the_peer_is_gone)
