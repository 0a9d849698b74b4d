"""Rotary frequencies for contexts longer than a model was trained on, by four methods.

With the plain frequencies w_j = theta^(-2j / head_dim) of pair j and a factor s:

- none: w_j. A larger theta (ABF, arXiv 2309.16039) needs nothing else.
- linear: w_j / s, position interpolation (arXiv 2306.15595).
- ntk: those of a theta multiplied by s^(d / (d - 2)) for heads of d dimensions ("NTK-aware"). So the slowest pair is
  interpolated by s, and the fastest is unchanged. It is static, the same for every length: transformers' "dynamic"
  changes theta with the longest text of a batch, which would train another model at each length.
- yarn: pairs that turn more than 32 times within the original length keep their frequency, and those that turn less
  than once are interpolated. Between them is a ramp over the pairs (arXiv 2309.00071). Cosines and sines are multiplied
  by 0.1 ln(s) + 1. As in transformers, the ends of the ramp are rounded outwards to whole pairs.

Frequencies are computed in float32, by the same operations as in transformers' modeling_rope_utils, so the tables are
bit-identical: at position 32,768, the last bit of the fastest frequency changes the angle by 0.002.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

KEPT_TURNS, INTERPOLATED_TURNS = 32, 1  # yarn's beta_fast and beta_slow
MAGNITUDE = 0.1  # yarn's factor of ln(s)


class RopeScaling(NamedTuple):
    """A method, and the ratio of the new context length to the old one."""

    method: str = "none"
    factor: float = 1.0
    original_length: int | None = None  # in tokens, before the extension; for yarn only


PLAIN = RopeScaling()


def scaled_frequencies(
    head_dim: int, theta: float, scaling: RopeScaling, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, float]:
    """Return the angle of each pair per token, [head_dim / 2], and the factor of cosines and sines."""
    method, factor, original_length = scaling
    if method == "ntk":
        theta *= factor ** (head_dim / (head_dim - 2))
    periods = theta ** (torch.arange(0, head_dim, 2, dtype=dtype, device=device) / head_dim)  # over 2π, in tokens
    plain = 1.0 / periods
    if method == "linear":
        return plain / factor, 1.0
    if method == "yarn":
        kept = _kept_share(head_dim, theta, original_length, dtype, device)
        return 1.0 / (factor * periods) * (1 - kept) + plain * kept, yarn_magnitude(factor)
    return plain, 1.0


def yarn_magnitude(factor: float) -> float:
    """Return yarn's factor of cosines and sines; its square multiplies the attention scores."""
    return MAGNITUDE * math.log(factor) + 1.0


def _kept_share(head_dim: int, theta: float, original_length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return yarn's ramp: the share of its frequency that each pair keeps, from 1 (fastest) to 0. [head_dim / 2]"""

    def pair(turns: float) -> float:
        return head_dim * math.log(original_length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first = max(math.floor(pair(KEPT_TURNS)), 0)
    last = min(math.ceil(pair(INTERPOLATED_TURNS)), head_dim - 1)
    pairs = torch.arange(head_dim // 2, dtype=dtype, device=device)
    return 1 - ((pairs - first) / (last - first or 0.001)).clamp(0, 1)
