"""Promises 2 and 3 of the token clock: the same rows per update everywhere, and every row once."""

import shutil
from collections import Counter
from itertools import chain

import numpy as np
import pytest
from streaming import MDSWriter
from streaming.base.world import World
from torch.utils.data import DataLoader

from rotary_foundry import load_recipe
from rotary_foundry.data.packing import Packer
from rotary_foundry.data.rows import SHARD_HASH, Frame, columns, encode_row
from rotary_foundry.data.stream import Draw, TrainingStream, WorkerRows

from .conftest import REPOSITORY, ROW_LENGTH, ROWS

SOURCES = list(ROWS)
MIXTURE = {"code": 0.2, "docs": 0.3, "web": 0.5}


def stream(local, draw: Draw, remote=None) -> TrainingStream:
    return TrainingStream(SOURCES, local, remote, ROW_LENGTH, 1 << 18, draw)


def draw(start_row=0, updates=10, rows=12, mixture=None, stage_index=0) -> Draw:
    return Draw(17, stage_index, mixture, start_row, updates, rows)


def updates_on(rows: TrainingStream, stretch: Draw, ranks: int, workers: int, nodes: int = 1) -> list[list[int]]:
    """The sorted rows of every update, as `ranks` ranks with `workers` loader workers each would see them."""
    rows.draw = stretch
    updates = [[] for _ in range(stretch.updates)]
    for worker in range(ranks * workers):
        worker_rows = WorkerRows(rows.order, stretch, World(nodes, ranks // nodes, workers, worker))
        for index in range(len(worker_rows)):
            update = (worker_rows.position(index) - stretch.start_row) // stretch.global_batch_size
            updates[update].append(worker_rows[index])
    return list(map(sorted, updates))


def epoch_of(rows: TrainingStream, epoch: int) -> np.ndarray:
    return rows.order.stretch(epoch * rows.order.epoch_rows, rows.order.epoch_rows)


@pytest.mark.parametrize("mixture", [None, MIXTURE], ids=["unweighted", "mixture"])
@pytest.mark.parametrize(
    ("ranks", "workers", "nodes"), [(2, 1, 1), (3, 2, 3), (4, 3, 2), (5, 2, 1), (7, 1, 7), (12, 5, 4)]
)
def test_an_update_has_the_same_rows_for_any_ranks_workers_and_nodes(row_folder, mixture, ranks, workers, nodes):
    stretch = draw(start_row=500, updates=60, mixture=mixture)  # over the end of an epoch
    rows = stream(row_folder, stretch)
    assert updates_on(rows, stretch, ranks, workers, nodes) == updates_on(rows, stretch, 1, 1)


def test_no_row_comes_twice_before_each_has_come_once_through_a_ramp_and_a_resume(row_folder):
    first = draw(updates=20, rows=6)
    rows = stream(row_folder, first)
    ramped = draw(start_row=120, updates=40, rows=12)
    resumed = draw(start_row=120 + 25 * 12, updates=15, rows=12)
    updates = updates_on(rows, first, 2, 1)
    updates += updates_on(rows, ramped, 2, 1)[:25]  # killed after 25 updates …
    updates += updates_on(rows, resumed, 3, 2)  # … and resumed on three ranks
    drawn = list(chain.from_iterable(updates))
    epoch = sum(ROWS.values())
    assert len(drawn) == 600 > epoch
    assert max(Counter(drawn[: 120 + 35 * 12]).values()) == 1  # the updates that lie within the first epoch
    assert sorted(Counter(drawn).values()) == [1] * (2 * epoch - 600) + [2] * (600 - epoch)


def test_a_mixture_draws_its_shares_and_within_a_source_every_row_about_as_often(row_folder):
    rows = stream(row_folder, draw(mixture=MIXTURE))
    epoch = epoch_of(rows, 0)
    counts = np.bincount(epoch, minlength=sum(ROWS.values()))
    start = 0
    for source, there in ROWS.items():
        of_source = counts[start : start + there]
        assert of_source.sum() / len(epoch) == pytest.approx(MIXTURE[source], abs=1 / len(epoch))
        assert of_source.max() - of_source.min() <= 1
        start += there


def test_a_source_outside_the_mixture_is_not_drawn(row_folder):
    rows = stream(row_folder, draw(mixture={"web": 1.0}))
    assert epoch_of(rows, 0).min() >= ROWS["code"] + ROWS["docs"]


def test_base_draws_the_share_of_tokens_that_its_last_stage_asks_for_within_a_hundredth_over_an_epoch(tmp_path):
    """Of packed rows, in which a mixture counts rows and the model tokens; papers come four times."""
    mixture = load_recipe(REPOSITORY / "yamls/main/base.yaml").stages["decay"].mixture
    generator = np.random.default_rng(0)
    for source, documents in {"web": 12_000, "code": 6000, "papers": 2000}.items():
        lengths = np.exp(generator.normal(3, 1, documents)).clip(3, 256).astype(int)
        packer = Packer(256, Frame((1,), (2,)))
        packed = [*packer.add(np.full(lengths.sum(), 5), lengths, np.arange(documents)), *packer.finish()]
        out = str(tmp_path / f"{source}/256/train")
        with MDSWriter(
            out=out, columns=columns(np.dtype(np.uint16)), hashes=[SHARD_HASH], size_limit=100_000
        ) as shards:
            for row in packed:
                shards.write(encode_row(row, np.dtype(np.uint16)))
    rows = TrainingStream(list(mixture), tmp_path, None, 256, 1 << 18, draw(mixture=mixture))
    assert 3 < mixture["papers"] * rows.epoch_size / rows.rows_by_source["papers"] < 5
    rows.draw = draw(mixture=mixture, rows=1, updates=rows.epoch_size)
    drawn = Counter()
    for (sample,) in DataLoader(rows, batch_size=1, collate_fn=list):
        drawn[sample["source"]] += len(sample["tokens"])
    for source, asked in mixture.items():
        assert drawn[source] / drawn.total() == pytest.approx(asked, rel=0.01)


def test_stages_and_epochs_have_orders_of_their_own(row_folder):
    rows = stream(row_folder, draw())
    first, second = epoch_of(rows, 0), epoch_of(rows, 1)
    assert sorted(first) == sorted(second)
    assert list(first) != list(second)
    rows.draw = draw(stage_index=1)
    assert list(epoch_of(rows, 0)) != list(first)


@pytest.mark.parametrize(("workers", "way"), [(0, None), (2, "fork"), (2, "spawn")])
def test_the_real_loader_gives_whole_updates_and_their_positions(row_folder, workers, way):
    stretch = draw(start_row=540, updates=7)
    rows = stream(row_folder, stretch)
    loader = DataLoader(rows, batch_size=12, num_workers=workers, collate_fn=list, multiprocessing_context=way)
    batches = list(loader)
    assert [sorted(sample["row"] for sample in batch) for batch in batches] == updates_on(rows, stretch, 1, 1)
    assert [sample["position"] for batch in batches for sample in batch] == list(range(540, 540 + 7 * 12))


@pytest.mark.parametrize("mixture", [None, MIXTURE], ids=["unweighted", "mixture"])
def test_the_real_loader_draws_alike_often_through_a_ramp_over_an_epoch_and_a_half(row_folder, mixture):
    epoch, start_row, drawn = sum(ROWS.values()), 0, []
    rows = stream(row_folder, draw(rows=6, mixture=mixture))
    for batch_size, updates in ((6, 20), (9, 20), (12, 46)):
        rows.draw = draw(start_row, updates, batch_size, mixture)
        for batch in DataLoader(rows, batch_size=batch_size, collate_fn=list):
            drawn += [sample["row"] for sample in batch]
        start_row += updates * batch_size
    assert start_row == len(drawn) == 852 > 1.5 * epoch
    first, second = (np.bincount(part, minlength=epoch) for part in (drawn[:epoch], drawn[epoch:]))
    for of_source in np.split(first, np.cumsum(list(ROWS.values()))[:-1]):
        assert of_source.max() - of_source.min() <= 1
    if mixture is None:
        assert (first == 1).all()
        assert second.max() == 1


def test_one_data_set_serves_several_segments_from_a_remote(row_folder, tmp_path):
    cache = tmp_path / "cache"
    rows = stream(cache, draw(rows=6), remote=str(row_folder))
    seen = []
    for stretch in (draw(rows=6), draw(start_row=60, rows=12), draw(stage_index=1, mixture=MIXTURE)):
        rows.draw = stretch
        loader = DataLoader(rows, batch_size=stretch.global_batch_size, num_workers=0, collate_fn=list)
        seen.append([sorted(sample["row"] for sample in batch) for batch in loader])
        assert [len(batch) for batch in seen[-1]] == [stretch.global_batch_size] * stretch.updates
    local = stream(row_folder, draw(rows=6))
    assert seen[0] == updates_on(local, draw(rows=6), 1, 1)
    assert list(cache.rglob("*.mds"))
    shutil.rmtree(cache)
