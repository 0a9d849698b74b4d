"""Records of an update, beside what tests of whole runs show."""

import sys
import threading

import pytest

from rotary_foundry.callbacks import run_records

from ..training.conftest import REPOSITORY


@pytest.fixture
def update_end(monkeypatch):
    """The benchmark that ends updates of base.yaml, without communication."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import update_end

    yield update_end
    sys.modules.pop("update_end")


@pytest.mark.parametrize(("ranks", "rank"), [(8, 0), (8, 1), (256, 0)])
def test_the_end_of_an_update_can_be_timed(update_end, monkeypatch, ranks, rank):
    monkeypatch.setattr(update_end, "UPDATES", 2)
    assert update_end.milliseconds(ranks, rank) > 0


def test_an_update_does_not_wait_for_the_disk_and_the_next_line_does(update_end, monkeypatch):
    written, disk = [], threading.Event()

    def slow(file, record):
        assert disk.wait(60)
        written.append(record)

    wait = run_records.RunRecords.wait

    def after_an_update(records):
        if records.written is not None:
            assert not written  # the update has ended
            disk.set()
        wait(records)

    monkeypatch.setattr(run_records, "write_line", slow)
    monkeypatch.setattr(run_records.RunRecords, "wait", after_an_update)
    monkeypatch.setattr(update_end, "UPDATES", 2)
    update_end.milliseconds(8, 0)
    assert len(written) == 2


def test_a_line_that_cannot_be_written_ends_the_run(update_end, monkeypatch):
    def full(file, record):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_records, "write_line", full)
    with pytest.raises(OSError, match="No space left"):
        update_end.milliseconds(8, 0)
