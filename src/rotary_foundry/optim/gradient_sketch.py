"""Sketches of gradients: 65,521 numbers each, from which the cosines between gradients are estimated.

Some rules add up the gradients of an update's tasks and keep none of them, so their exact cosines with the sum are
lost. They are estimated from a count sketch (Charikar, Chen and Farach-Colton, 2002) of each gradient: every element
gets a random sign and is added to one of LENGTH places. Sketches are linear, so the sum's sketch is the sum of the
sketches. A cosine c between two sketches has a standard error of about (1 - c²) / sqrt(LENGTH), at most 0.004, for
gradients of any size.

- The place is the element's position modulo LENGTH. LENGTH is a prime number, so the elements of a matrix's column are
  spread over all places.
- The signs are windows of one random vector. Each window begins at a random place, newly drawn in each update, so the
  errors of different updates are independent. Drawing a sign for each element would take ten times as long as the rest.
- A rank makes a sketch of its shards. Only inner products are summed over the ranks, so no sketch is sent.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from rotary_foundry.optim.sharded_sums import local_tensors

LENGTH = 65_521
WINDOW = 16 * LENGTH  # elements that take their signs from neighbouring places


class Sketcher:
    """Makes the sketches of one update, which can be compared with each other.

    Args:
        params: the parameters whose gradients are sketched.
        key: determines the signs; it must differ between updates and between ranks.
    """

    def __init__(self, params: Sequence[Tensor], key: Sequence[int]):
        generator, self.signs = np.random.default_rng(key), {}  # by parameter, in pieces of LENGTH
        for param, local in zip(params, local_tensors(params), strict=True):
            signs, elements = _signs(local.device), local.numel()
            starts = generator.integers(WINDOW, size=-(-elements // WINDOW)).tolist()
            windows = [signs[start : start + elements - i * WINDOW][:WINDOW] for i, start in enumerate(starts)]
            self.signs[param] = [piece for window in windows for piece in window.split(LENGTH)]

    def __call__(self, gradient: Mapping[Tensor, Tensor]) -> Tensor:
        """Return the sketch, float32 [LENGTH], of this rank's shards of a gradient; a missing part counts as 0."""
        sketch = torch.zeros(LENGTH, device=next(iter(gradient.values())).device)
        for param, of_param in gradient.items():
            (local,) = local_tensors([of_param])
            for part, signs in zip(local.flatten().split(LENGTH), self.signs[param], strict=False):
                # each is read once, and the sums stay in a cache; only a parameter's last piece is shorter
                (sketch if part.numel() == LENGTH else sketch[: part.numel()]).addcmul_(part, signs)
        return sketch


@lru_cache(1)
def _signs(device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(2, (2 * WINDOW,), generator=generator).mul_(2).sub_(1).float().to(device)
