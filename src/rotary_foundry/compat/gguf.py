"""Private parts of gguf 0.19."""

import numpy as np
from gguf import GGUFReader


class BoundedReader(GGUFReader):
    """A GGUFReader that refuses to read past the end of its file.

    Its own reading returns a short array there: the loss would show as an unrelated error, and a damaged length of an
    array as a loop of hours. Until it checks.
    """

    def _get(self, offset: int, dtype: np.typing.DTypeLike, count: int = 1, **order: str | None) -> np.ndarray:
        if int(offset) + np.dtype(dtype).itemsize * int(count) > len(self.data):
            raise ValueError("it ends before its content does")
        return super()._get(offset, dtype, count, **order)
