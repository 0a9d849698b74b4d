"""How often each row of an epoch is drawn, before the rows are shuffled.

Streaming's own `resample_streams` loops over single rows in Python when a mixture draws a part of a source, which takes
a minute for 1e8 rows at every start of a loader. This gives the same promise from whole arrays: a row of a source is
drawn as often as any other of it, or once more.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def sample_rows(
    shard_rows: Sequence[NDArray[np.int64]], choose: Sequence[int], seed: int, epoch: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows of an epoch, and the sizes of the shuffle units, each a shard or a part of one, that they lie in.

    Each row of a source is drawn `choose // rows` times, and `choose % rows` of them, taken at random, once more.

    Args:
        shard_rows: of each source, the rows of its shards, int64 [shards].
        choose: of each source, how many rows to draw.
        seed, epoch: what the random choice depends on.

    Returns:
        Unit sizes, int64 [units], as Streaming's shuffle wants them, and row indices, int64 [sum of `choose`], which
        count through all sources.
    """
    units, rows = [], []
    first_row = 0
    for source, (sizes, wanted) in enumerate(zip(shard_rows, choose, strict=True)):
        there = int(sizes.sum())
        times, rest = divmod(wanted, there)
        generator = np.random.default_rng((seed, epoch, source))
        again = np.sort(generator.choice(there, rest, replace=False, shuffle=False))
        of_shards = np.diff(np.searchsorted(again, np.concatenate([[0], sizes.cumsum()])))
        units += [sizes] * times + [of_shards[of_shards > 0]]
        rows += [np.arange(first_row, first_row + there)] * times + [first_row + again]
        first_row += there
    return np.concatenate(units), np.concatenate(rows)
