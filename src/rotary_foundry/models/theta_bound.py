"""The smallest rotary theta for a row length, by "Base of RoPE Bounds Context Length" (arXiv 2405.14591).

On average, a token attends more to similar than to random tokens at distance m if Σ_j cos(m · theta^(-2j/d)) is not
negative; the sum is over the rotary pairs j of a head of d dimensions. The bound is the smallest theta for which this
holds at every distance within the row. Below it, the loss may stay low while retrieval fails.

The sum oscillates with theta, so it may be negative again above the bound. So the search goes upwards, over thetas of
two digits. The paper's table 2, for d = 128, has 2.7e4 at 4,096 tokens, 8.4e4 at 8,192, 3.1e5 at 16,384, 6.4e5 at
32,768 and 2.1e6 at 65,536; this module finds 2.9e4, 8.4e4, 3.5e5, 6.3e5 and 2.1e6, in a second.
"""

from collections.abc import Iterator
from functools import cache
from math import inf

import numpy as np
from numpy.typing import NDArray

CHUNK = 2048  # distances computed at a time
NEXT = 1.15  # the first negative distance moves a little further from one theta to the next


@cache
def smallest_theta(row_length: int, head_dim: int) -> float:
    """Return the smallest theta for a row length in tokens and a head dimension; inf if no theta is large enough."""
    before = 0
    for theta in _of_two_digits():
        frequencies = theta ** -(np.arange(0, head_dim, 2) / head_dim)
        near = _first_negative(frequencies, before, min(int(NEXT * before) + 1, row_length + 1))
        found = near or _first_negative(frequencies, 0, row_length + 1)
        if found is None:
            return theta
        before = found
    return inf  # a head of two dimensions has one pair, which does not depend on theta


def _of_two_digits() -> Iterator[float]:
    yield from (digits * 10.0**power for power in range(1, 15) for digits in range(10, 100))


def _first_negative(frequencies: NDArray[np.float64], start: int, end: int) -> int | None:
    """Return the first distance in [start, end) with a negative sum; None if there is none."""
    for first in range(start, end, CHUNK):
        distances = np.arange(first, min(first + CHUNK, end))
        negative = np.nonzero(np.cos(distances[:, None] * frequencies).sum(axis=1) < 0)[0]
        if len(negative):
            return int(distances[negative[0]])
    return None
