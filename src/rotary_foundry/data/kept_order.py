"""The canonical order on a node of a run: computed once an epoch, not at every start of a loader.

A loader deals out a part of an epoch, and base's first stage takes a hundred loaders, each of which has the order dealt
in a worker of the node's first rank that has just been forked. For 1.6e9 rows that is minutes, and 40 bytes a row
(benchmarks/README.md). So the first one leaves the order in a file, from which the next ones read their part.

The file has no name: the rank opens it in TMPDIR and its workers inherit it. So it is this run's alone, and gone with
the rank, however that ends; a run that goes on computes the order once more. A name beside the shards would save that,
but there it is to be told from other runs' and nodes', and to be removed while one of them may read it.
"""

import os
import tempfile
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from rotary_foundry.data.order import CanonicalOrder, Draw
from rotary_foundry.utils.errors import DataError
from rotary_foundry.utils.wording import one_line, size


def row_dtype(rows: int) -> np.dtype:
    """The smallest type that holds the index of each of so many rows."""
    return np.min_scalar_type(rows - 1)


@dataclass(frozen=True)
class KeptOrder(CanonicalOrder):
    """The canonical order, of which the epoch last asked for stays in `file`, in the smallest type that holds it.

    After the rows comes a hash of what they depend on. It is written last, and what does not end in it is not whole.
    """

    file: BinaryIO = field(default_factory=partial(tempfile.TemporaryFile, buffering=0), compare=False)

    def part(self, draw: Draw, epoch: int, start: int, rows: int) -> NDArray[np.int64]:
        """As `CanonicalOrder.part`.

        Raises:
            DataError: there is no room for the file.
        """
        count = sum(self.rows_an_epoch(draw.mixture))
        dtype = row_dtype(sum(int(of_source.sum()) for of_source in self.shard_rows))
        key = sha256(repr((draw.seed, draw.stage_index, draw.mixture, epoch)).encode()).digest()
        if os.pread(self.file.fileno(), len(key), count * dtype.itemsize) != key:
            self._keep(self.epoch(draw, epoch).astype(dtype), key)
        kept = np.memmap(self.file, dtype, "r", start * dtype.itemsize, (min(rows, count - start),))
        return kept.astype(np.int64)

    def _keep(self, order: NDArray, key: bytes) -> None:
        try:
            self.file.truncate(0)
            self.file.seek(0)
            order.tofile(self.file)
            self.file.write(key)
        except OSError as error:
            raise DataError(
                f"the order of an epoch's rows, {size(order.nbytes)}, cannot be written to {tempfile.gettempdir()}: "
                f"{one_line(error)}; make room there, or set TMPDIR to a folder that has it"
            ) from error
