"""Attention by the flash-attn package, if it is installed; only in bf16 and fp16. `varlen` does the same without it.

- On a Hopper GPU, global layers use FlashAttention 3 if it is installed: a separate package (`flash_attn_interface`),
  built from the `hopper` folder of flash-attention. All other layers use FlashAttention 2 (`flash_attn`).
- Everything but q, k and v is passed by keyword, because the two packages have different orders of arguments.
- Several interfaces of FlashAttention 3 have the same version, 3.0.0b1. In the sources of flash-attn 2.8.0 it returns
  the output and the logsumexp, in those of 2.8.3 only the output. Both are supported; older ones are not.
- Neither package is imported before it is called, so ours works without them.

No GPU was available when this was written. Tests compare the calls with recorded signatures, and these with the
published sources (tests/models/flash_stand_in.py).
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from rotary_foundry.models.layers.documents import Documents


@torch.compiler.disable  # its kernels are already fused, so a compiled layer breaks its graph here
def flash_attention(q: Tensor, k: Tensor, v: Tensor, documents: Documents, window_size: tuple[int, int]) -> Tensor:
    """Compute `attention` (attention.py) for q, k and v in bf16 or fp16. window_size: as attention.py's, inclusive."""
    whole = window_size[0] < 0
    attend = _kernel("flash_attn_interface" if whole and has_flash_attention_3(q.device) else "flash_attn")
    out = attend(
        q,
        k,
        v,
        cu_seqlens_q=documents.cu_seqlens,
        cu_seqlens_k=documents.cu_seqlens,
        max_seqlen_q=documents.max_seqlen,
        max_seqlen_k=documents.max_seqlen,
        causal=window_size[1] == 0,
        window_size=window_size,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return out if isinstance(out, Tensor) else out[0]


@cache
def flash_attn_is_installed() -> bool:
    return find_spec("flash_attn") is not None


@cache
def has_flash_attention_3(device: torch.device) -> bool:
    """Return whether the GPU is a Hopper (for which FlashAttention 3 is made) and the package is installed."""
    return find_spec("flash_attn_interface") is not None and torch.cuda.get_device_capability(device)[0] == 9


def _kernel(package: str) -> Callable[..., Tensor | tuple[Tensor, ...]]:
    return import_module(package).flash_attn_varlen_func
