"""Within an epoch, a source's rows are drawn equally often, or once more."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rotary_foundry.data.sampling import sample_rows

SOURCES = st.lists(
    st.tuples(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 300)), min_size=1, max_size=4
).filter(lambda sources: any(choose for _, choose in sources))


@given(SOURCES, st.integers(0, 2**32 - 1), st.integers(0, 5))
def test_each_source_is_drawn_as_often_as_asked_and_its_rows_about_equally_often(sources, seed, epoch):
    shards, choose = [np.array(rows) for rows, _ in sources], [wanted for _, wanted in sources]
    units, rows = sample_rows(shards, choose, seed, epoch)
    counts = np.bincount(rows, minlength=sum(map(np.sum, shards)))
    for of_source, wanted in zip(
        np.split(counts, np.cumsum([np.sum(one) for one in shards])[:-1]), choose, strict=True
    ):
        assert of_source.sum() == wanted
        assert of_source.max() - of_source.min() <= 1
    shard_of_row = np.repeat(np.arange(sum(map(len, shards))), np.concatenate(shards))[rows]
    assert units.sum() == len(rows)
    for unit in np.split(shard_of_row, units.cumsum()[:-1]):
        assert len(set(unit)) == 1  # what is shuffled as one unit comes with one shard


def test_what_is_drawn_once_more_differs_by_epoch_and_source_but_not_by_run():
    shards = [np.array([500, 500]), np.array([1000])]
    drawn = [sample_rows(shards, [300, 300], seed=7, epoch=epoch)[1] for epoch in (0, 1, 0)]
    assert (drawn[0] == drawn[2]).all()
    assert set(drawn[0]) != set(drawn[1])
    assert set(drawn[0][:300]) != set(drawn[0][300:] - 1000)
