"""Attention within the documents of a flat sequence: one function, and behind it a module for each way to compute it.

- `flash` on GPUs with flash-attn, in bf16 or fp16; `flex` on GPUs without, and in float32; `sdpa` on CPU, and anywhere
  else. All three take the flat sequence as it is and give the same numbers up to rounding.
- The choice is a function of what is asked for, the device, the dtype and what is installed. It is made at every call:
  it costs nothing, and a network that is moved to another device or another dtype takes its attention along. Training
  asks the same function before it builds a model, so that an impossible wish is refused at once.
- What was asked for is never replaced by something else without a word; only `auto` looks for what there is.

Softmax attention has no parameters, so nothing here is a Module.
"""

import torch
from torch import Tensor

from rotary_foundry.models.layers.attention_flash import flash_attention, flash_attn_is_installed
from rotary_foundry.models.layers.attention_flex import flex_attention
from rotary_foundry.models.layers.attention_sdpa import sdpa_attention
from rotary_foundry.models.layers.documents import Documents
from rotary_foundry.utils.errors import ConfigurationError

BACKENDS = {"flash": flash_attention, "flex": flex_attention, "sdpa": sdpa_attention}
HALF = (torch.bfloat16, torch.float16)


@torch.compiler.disable  # its kernels are fused, or compiled, by themselves; a compiled layer goes around it
def attention(
    q: Tensor, k: Tensor, v: Tensor, documents: Documents, window: int | None, implementation: str = "auto"
) -> Tensor:
    """Attention of every token to its own document, before it and after it.

    Args:
        q, k, v: [tokens, heads, head_dim], turned by their positions.
        documents: where the documents lie; has `cu_seqlens` and `max_seqlen`, and keeps what a backend derives of them.
        window: None to see the whole document, else only the tokens at most window // 2 away.
        implementation: auto, flash, flex or sdpa.

    Returns:
        [tokens, heads, head_dim]

    Raises:
        ConfigurationError: the implementation cannot compute here, or not in this dtype.
    """
    chosen = choose(implementation, q.device.type, q.dtype, flash_attn_is_installed())
    return BACKENDS[chosen](q, k, v, documents, window)


def choose(implementation: str, device_type: str, dtype: torch.dtype, flash_attn: bool) -> str:
    """The backend for an `attn_implementation`, on a type of device, with or without flash-attn installed.

    Raises:
        ConfigurationError: there is none, and what would be right.
    """
    if implementation == "auto":
        if device_type != "cuda":
            return "sdpa"
        return "flash" if flash_attn and dtype in HALF else "flex"
    if implementation not in BACKENDS:
        raise ConfigurationError(f"attn_implementation: '{implementation}' is not one of auto, {', '.join(BACKENDS)}")
    asked = f"'model.attn_implementation: {implementation}'"
    if implementation != "sdpa" and device_type != "cuda":
        raise ConfigurationError(f"{asked} needs a CUDA GPU, and this is {device_type}; there, give 'sdpa' or 'auto'")
    if implementation == "flash" and not flash_attn:
        raise ConfigurationError(
            f"{asked} needs flash-attn: pip install --no-build-isolation -e '.[gpu]'; "
            "'flex' does without, and 'auto' takes what there is"
        )
    if implementation == "flash" and dtype not in HALF:
        raise ConfigurationError(f"{asked} computes in bf16 only: give 'precision: amp_bf16', or 'flex', or 'auto'")
    return implementation


def check_implementation(implementation: str, device_type: str, precision: str) -> str:
    """The backend of training on a type of device, in fp32 or amp_bf16; raises what `attention` would raise there."""
    dtype = torch.bfloat16 if precision == "amp_bf16" else torch.float32
    return choose(implementation, device_type, dtype, flash_attn_is_installed())
