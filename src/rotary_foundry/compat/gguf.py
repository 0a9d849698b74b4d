"""Private parts of gguf 0.19."""

import numpy as np
from gguf import GGUFReader
from numpy.typing import DTypeLike


class BoundedReader(GGUFReader):
    """A GGUFReader that raises ValueError where it would read past the end of its file.

    The original returns a short array there. A truncated file then shows as an unrelated error, and an array whose
    length is damaged as a loop of hours. Until it checks.
    """

    def _get(self, offset: int, dtype: DTypeLike, count: int = 1, **order: str | None) -> np.ndarray:
        if int(offset) + np.dtype(dtype).itemsize * int(count) > len(self.data):
            raise ValueError("it ends before its content does")
        return super()._get(offset, dtype, count, **order)
