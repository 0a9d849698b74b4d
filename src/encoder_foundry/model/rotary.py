"""Rotary positions, in the rotate-half convention of transformers: dimension i turns with dimension i + head_dim / 2.

Tables are computed in float32 and kept per (length, theta, dtype, device), their length rounded up to a power of two
so that rows of many lengths share a few of them. They are cast to the dtype of the queries before use, as transformers
does: at 8192 positions bfloat16 angles would be useless, but bfloat16 cosines cost only their own rounding.
"""

from functools import lru_cache

import torch
from torch import Tensor

from encoder_foundry.model.documents import Documents


def rotary_tables(documents: Documents, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines for every token of a packed sequence, each [tokens, 1, head_dim / 2] in `dtype`."""

    def gather() -> tuple[Tensor, Tensor]:
        length = 1 << (documents.max_seqlen - 1).bit_length()
        cos, sin = _tables(length, head_dim, theta, dtype, documents.cu_seqlens.device)
        return cos[documents.positions].unsqueeze(1), sin[documents.positions].unsqueeze(1)

    return documents.once(("rotary", head_dim, theta, dtype), gather)


@lru_cache(maxsize=16)
def _tables(
    length: int, head_dim: int, theta: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    frequencies = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)
    angles = torch.arange(length, dtype=torch.float32, device=device)[:, None] * frequencies  # [length, head_dim / 2]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), 1).to(dtype), torch.cat((-sin, sin), 1).to(dtype)


def rotate(x, cos, sin):
    return _Rotate.apply(x, cos, sin)


def _turn(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((second, first), dim=-1), sin)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin)

    @staticmethod
    def backward(ctx, grad):
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, -sin), None, None
