"""The canonical order: every row once, drawn alike often, and the same from wherever it is computed."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rotary_foundry.data.order import StageOrder, rows_an_epoch

SHARDS = st.lists(st.integers(1, 40), min_size=1, max_size=8).map(np.array)
SOURCES = st.dictionaries(st.sampled_from(["code", "docs", "web"]), SHARDS, min_size=1)
BLOCKS = st.integers(1, 100)
SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def mixtures(draw) -> tuple[dict, dict]:
    """Sources and shares of some of them; some are drawn many times an epoch, some not at all."""
    sources = draw(SOURCES)
    shares = {source: draw(st.sampled_from([0.0, 0.01, 0.3, 1.0, 7.0])) for source in sources}
    shares[next(iter(sources))] = 1.0
    total = sum(shares.values())
    return sources, {source: share / total for source, share in shares.items()}


def by_source(sources: dict, rows: np.ndarray) -> dict[str, np.ndarray]:
    """How often each row of each source was drawn."""
    bounds = np.cumsum([shards.sum() for shards in sources.values()])
    counts = np.bincount(rows, minlength=bounds[-1])
    return dict(zip(sources, np.split(counts, bounds[:-1]), strict=True))


@given(SOURCES, BLOCKS, SEEDS, st.integers(0, 50))
def test_without_a_mixture_every_row_comes_once_an_epoch(sources, block, seed, epoch):
    order = StageOrder(sources, block, seed, 0, None)
    rows = order.epoch_rows
    assert sorted(order.stretch(epoch * rows, rows)) == list(range(rows))


@given(mixtures(), BLOCKS, SEEDS, st.lists(st.integers(1, 60), min_size=1, max_size=12))
def test_any_cut_of_the_order_gives_the_same_rows(mixture, block, seed, lengths):
    """Stretches, updates of a ramp and single rows, over the ends of epochs."""
    sources, shares = mixture
    whole = StageOrder(sources, block, seed, 0, shares).stretch(0, sum(lengths))
    pieces = [
        StageOrder(sources, block, seed, 0, shares).stretch(start, length)
        for start, length in zip(np.cumsum(lengths) - lengths, lengths, strict=True)
    ]
    assert np.concatenate(pieces).tolist() == whole.tolist()
    again = StageOrder(sources, block, seed, 0, shares)
    backwards = [again[position] for position in reversed(range(len(whole)))]
    assert backwards[::-1] == whole.tolist()


@given(mixtures(), BLOCKS, SEEDS, st.integers(1, 12))
def test_under_a_mixture_draws_of_a_sources_rows_differ_by_at_most_one_after_any_epoch(mixture, block, seed, epochs):
    sources, shares = mixture
    order = StageOrder(sources, block, seed, 0, shares)
    asked = rows_an_epoch({source: int(shards.sum()) for source, shards in sources.items()}, shares)
    for source, of_epoch in zip(sources, asked, strict=True):
        counts = by_source(sources, order.stretch(0, epochs * order.epoch_rows))[source]
        assert counts.sum() == epochs * of_epoch
        assert counts.max() - counts.min() <= 1


@given(mixtures(), SEEDS)
def test_the_shares_of_an_epoch_are_the_mixtures(mixture, seed):
    sources, shares = mixture
    order = StageOrder(sources, 32, seed, 0, shares)
    there = sum(int(shards.sum()) for source, shards in sources.items() if shares[source])
    assert order.epoch_rows == there
    for source, counts in by_source(sources, order.stretch(0, there)).items():
        assert abs(counts.sum() - there * shares[source]) < 1


@given(mixtures(), st.integers(1, 60), SEEDS)
def test_a_block_holds_whole_shards_but_where_an_epoch_or_a_pass_over_a_source_ends(mixture, block, seed):
    """Rows that are near each other come from few shards, so that few have to be here at a time."""
    sources, shares = mixture
    order = StageOrder(sources, block, seed, 0, shares)
    bounds = np.cumsum(np.concatenate(list(sources.values())))
    epoch = order.stretch(0, order.epoch_rows)
    largest = max(shards.max() for shards in sources.values())
    sizes = map(np.sum, sources.values())
    passes = sum(-(-asked // size) for asked, size in zip(order.rows_an_epoch, sizes, strict=True))
    pieces, start = 0, 0
    while start < len(epoch):
        rows, _ = order._at(start)
        assert len(rows) < block + largest
        pieces += len(set(np.searchsorted(bounds, rows, "right")))
        start += len(rows)
    drawn = Counter(np.searchsorted(bounds, epoch, "right"))
    sizes = np.diff(bounds, prepend=0)
    assert pieces <= sum(-(-count // sizes[shard]) for shard, count in drawn.items()) + passes


def test_a_source_is_spread_evenly_over_an_epoch():
    sources = {"web": np.full(900, 100), "papers": np.full(100, 100)}
    order = StageOrder(sources, 1000, 17, 0, None)
    papers = order.stretch(0, order.epoch_rows).reshape(10, -1) >= 90_000
    assert abs(papers.mean(1) - 0.1).max() < 0.011


def test_stages_epochs_and_seeds_have_orders_of_their_own():
    sources = {"web": np.full(9, 100)}
    stretches = [
        StageOrder(sources, 300, seed, stage, None).stretch(start, 900).tolist()
        for seed in (17, 18)
        for stage in (0, 1)
        for start in (0, 900)
    ]
    assert len(set(map(tuple, stretches))) == 8


def test_the_order_is_the_one_that_runs_have_begun_with():
    """A run goes on in its order with a later version too: whoever changes it has to refuse the runs of before."""
    sources = {"code": np.array([5, 3]), "web": np.array([9, 1, 7])}
    assert StageOrder(sources, 8, 17, 0, None).stretch(0, 22).tolist() == [
        *(17, 18, 21, 20, 24, 22, 23, 19, 0, 2, 1, 3, 4, 6, 7, 5, 9, 11, 16, 14, 12, 15)
    ]
    assert StageOrder(sources, 8, 17, 1, {"code": 0.8, "web": 0.2}).stretch(40, 12).tolist() == [
        *(9, 5, 6, 4, 0, 5, 7, 2, 3, 1, 11, 3)
    ]
