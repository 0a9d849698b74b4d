"""Private parts of gguf 0.19."""

import numpy as np
from gguf import GGUFReader
from numpy.typing import DTypeLike


class BoundedReader(GGUFReader):
    """A GGUFReader that raises ValueError instead of reading past the end of its file.

    The original returns a short array then. So a truncated file causes an unrelated error, and a damaged array length
    causes a loop of hours. Needed until gguf checks this.
    """

    def _get(self, offset: int, dtype: DTypeLike, count: int = 1, **order: str | None) -> np.ndarray:
        if int(offset) + np.dtype(dtype).itemsize * int(count) > len(self.data):
            raise ValueError("it ends before its content does")
        return super()._get(offset, dtype, count, **order)
