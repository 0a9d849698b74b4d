"""Attention by the flash-attn package, where it is installed. bf16 and fp16 only; `varlen` computes the same without.

- Global layers go to FlashAttention 3 on a Hopper GPU that has it: a package of its own (`flash_attn_interface`), built
  from the `hopper` folder of flash-attention. Local layers, and all layers elsewhere, go to FlashAttention 2
  (`flash_attn`), which is ModernBERT's own division of work.
- Everything but q, k and v is passed by keyword: the two have different orders of arguments.
- FlashAttention 3 calls itself 3.0.0b1 through several interfaces. As of the sources with flash-attn 2.8.0 it returns
  the output and the logsumexp, as of those with 2.8.3 the output; both are taken. Older ones are not.
- Neither is imported before it is called, so that the package works without.

There was no GPU where this was written. Tests hold the calls against recorded signatures, and the recorded against the
published sources (tests/models/flash_stand_in.py).
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from rotary_foundry.models.layers.documents import Documents


@torch.compiler.disable  # its kernels are fused already; a compiled layer goes around them
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
    """Whether a GPU is of the Hopper generation (for which FlashAttention 3 is made) and the package there."""
    return find_spec("flash_attn_interface") is not None and torch.cuda.get_device_capability(device)[0] == 9


def _kernel(package: str) -> Callable[..., Tensor | tuple[Tensor, ...]]:
    return import_module(package).flash_attn_varlen_func
