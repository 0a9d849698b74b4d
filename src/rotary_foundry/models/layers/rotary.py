"""Rotary positions in transformers' rotate-half convention: dimension i is rotated together with i + head_dim / 2.

- Tables are computed in float32 and then cast to the dtype of the queries, as in transformers. bfloat16 angles would be
  useless at 8,192 positions. bfloat16 cosines add little to the error that queries in bfloat16 have anyway: at 32,768
  positions, theta 500,000 and head size 128, rotated vectors are off by 0.24 % (root mean square, on CPU), and exact
  ones that are rounded to bfloat16 by 0.17 %. For float64 queries, which occur only in comparisons of implementations,
  tables are computed in float64.
- They are cached by (length, head_dim, theta, scaling, dtype, device), with the length rounded up to a power of two.
  So the many lengths of packed batches share a few tables.
- `rotate` has its own backward, the transpose of the rotation. It stores neither its input nor any product, and in
  bfloat16 on CPU it takes half the time of four products of halves.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from rotary_foundry.models.layers.documents import Documents
from rotary_foundry.models.layers.rope_scaling import PLAIN, RopeScaling, scaled_frequencies

RotaryTables = tuple[Tensor, Tensor]


def rotary_tables(
    documents: Documents, head_dim: int, theta: float, dtype: torch.dtype, scaling: RopeScaling = PLAIN
) -> RotaryTables:
    """Return cosines and signed sines for every token of a packed sequence, for `rotate`: [tokens, 1, head_dim]."""
    tables = first_rotary_tables(documents.max_seqlen, head_dim, theta, dtype, documents.cu_seqlens.device, scaling)
    return tables[0][documents.positions], tables[1][documents.positions]


def first_rotary_tables(
    tokens: int, head_dim: int, theta: float, dtype: torch.dtype, device: torch.device, scaling: RopeScaling = PLAIN
) -> RotaryTables:
    """Return cosines and signed sines for the first positions, 0 to tokens - 1, for `rotate`: [tokens, 1, head_dim]."""
    length = 1 << (tokens - 1).bit_length()
    cos, sin = _tables(length, head_dim, theta, scaling, dtype, device)
    return cos[:tokens].unsqueeze(1), sin[:tokens].unsqueeze(1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate queries or keys by their positions. x: [tokens, heads, head_dim] → the same shape."""
    return _Rotate.apply(x, cos, sin)


@lru_cache(maxsize=16)
def _tables(
    length: int, head_dim: int, theta: float, scaling: RopeScaling, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    computed = torch.promote_types(dtype, torch.float32)
    frequencies, factor = scaled_frequencies(head_dim, theta, scaling, computed, device)
    angles = torch.arange(length, dtype=computed, device=device)[:, None] * frequencies
    cos, sin = angles.cos() * factor, angles.sin() * factor  # [length, head_dim / 2]
    return torch.cat((cos, cos), dim=1).to(dtype), torch.cat((-sin, sin), dim=1).to(dtype)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, -sin), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((second, first), dim=-1), sin)
