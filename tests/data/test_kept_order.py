"""The order of an epoch is computed by one loader of a run, and read by those after it."""

import resource
import tempfile
from multiprocessing import Value

import numpy as np
import pytest
from torch.utils.data import DataLoader

from rotary_foundry.data.order import CanonicalOrder, Draw
from rotary_foundry.data.stream import TrainingStream
from rotary_foundry.utils.errors import DataError

from .conftest import ROW_LENGTH, ROWS

MIXTURE = {"code": 0.2, "docs": 0.3, "web": 0.5}
EPOCH = sum(ROWS.values())


def stream(local) -> TrainingStream:
    return TrainingStream(list(ROWS), local, None, ROW_LENGTH, "py1e", 1 << 18, Draw(17, 0, None, 0, 1, 12))


@pytest.fixture
def computed(monkeypatch) -> Value:
    """How many epochs were computed, in any process."""
    count, epoch = Value("i", 0), CanonicalOrder.epoch

    def counted(*arguments):
        with count.get_lock():
            count.value += 1
        return epoch(*arguments)

    monkeypatch.setattr(CanonicalOrder, "epoch", counted)
    return count


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_compute_an_epoch_once_and_draw_what_is_computed_anew(row_folder, computed, workers):
    rows = stream(row_folder)
    starts = [0, 60, 180, 540]  # the last goes over the end of the epoch
    draws = [Draw(17, 0, None, start, 5, 12) for start in starts]
    draws += [Draw(17, 0, None, 0, 5, 12), Draw(17, 0, MIXTURE, 0, 5, 12), Draw(17, 1, None, 0, 5, 12)]
    draws += [Draw(17, 0, None, 600, 43, 12)]  # of the second epoch, into the third
    counts = []
    for draw in draws:
        rows.draw = draw
        batches = list(DataLoader(rows, batch_size=12, num_workers=workers, collate_fn=list))
        counts.append(computed.value)
        order = CanonicalOrder(rows.sources, rows.order.shard_rows, "py1e", 1 << 18)
        before = computed.value
        assert [[sample["row"] for sample in batch] for batch in batches] == order.updates(draw).tolist()
        computed.value = before
    assert EPOCH == 551
    assert np.diff([0, *counts]).tolist() == [1, 0, 0, 1, 1, 1, 1, 2]


def test_an_order_that_was_not_written_whole_is_not_read(row_folder, computed):
    rows = stream(row_folder)
    first = rows.order.updates(rows.draw)
    rows.order.file.truncate(rows.order.file.seek(0, 2) - 1)
    assert (rows.order.updates(rows.draw) == first).all()
    assert computed.value == 2


def test_without_room_the_run_ends_with_a_line_that_names_the_place(row_folder):
    rows = stream(row_folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(
            DataError, match=f"order of an epoch's rows, 1.1 kB, .* to {tempfile.gettempdir()}: .*TMPDIR"
        ):
            rows.order.updates(rows.draw)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
