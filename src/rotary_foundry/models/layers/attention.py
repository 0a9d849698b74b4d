"""Attention within the documents of a flat sequence: one function, and behind it a module for each way to compute it.

- `varlen` on CUDA in bf16 or fp16; `sdpa` on CPU, and for float32 anywhere; `flash`, the flash-attn package, where it
  is asked for. All three take the flat sequence as it is and give the same numbers up to rounding.
- The choice follows from what is asked for, the device and the dtype. It is made at every call: it costs nothing, and a
  network that is moved to another device or dtype takes its attention along. Training asks the same function before it
  builds a model, so an unsupported setting is refused at once. Only `auto` looks for what there is.
- FlexAttention was removed. It needed a compiled kernel and block masks for what `varlen` computes without either, and
  copied the sequence in and out: an estimated 10 to 15 % behind FlashAttention 2, never measured on a GPU.

Softmax attention has no parameters, so nothing here is a Module.
"""

from difflib import get_close_matches

import torch
from torch import Tensor

from rotary_foundry.models.layers.attention_flash import flash_attention, flash_attn_is_installed
from rotary_foundry.models.layers.attention_sdpa import sdpa_attention
from rotary_foundry.models.layers.attention_varlen import varlen_attention
from rotary_foundry.models.layers.documents import Documents
from rotary_foundry.utils.errors import ConfigurationError

BACKENDS = {"varlen": varlen_attention, "flash": flash_attention, "sdpa": sdpa_attention}
HALF = (torch.bfloat16, torch.float16)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    documents: Documents,
    window: int | None,
    implementation: str = "auto",
    causal: bool = False,
) -> Tensor:
    """Attend from every token to its own document.

    Under `torch.use_deterministic_algorithms` the backward pass of every backend is deterministic.

    Args:
        q: [tokens, heads, head_dim], turned by their positions.
        k, v: [tokens, kv_heads, head_dim], k turned as well. kv_heads divides heads; query head h reads key head
            h // (heads // kv_heads).
        documents: where the documents lie; has `cu_seqlens` and `max_seqlen`, and keeps what a backend derives of them.
        window: None to see the whole document, else only the tokens at most window // 2 away.
        implementation: auto, varlen, flash or sdpa.
        causal: hide the tokens after the query. A window keeps its half before it, as in ModernBERT's decoder: a
            Mistral-like window of the last n tokens is `window=2 * (n - 1)`.

    Returns:
        [tokens, heads, head_dim]

    Raises:
        ConfigurationError: the implementation cannot compute here or in this dtype, or kv_heads does not divide heads.
    """
    if q.shape[1] % k.shape[1]:
        raise ConfigurationError(f"attention: {k.shape[1]} key/value heads do not divide {q.shape[1]} query heads")
    chosen = choose(implementation, q.device.type, q.dtype)
    if q.shape[0] == 0:
        return q + k.sum() + v.sum()  # empty, with gradients for all three
    return BACKENDS[chosen](q, k, v, documents, window_size(window, causal))


def window_size(window: int | None, causal: bool) -> tuple[int, int]:
    """Tokens that a query sees before and after itself; -1: all of them."""
    reach = -1 if window is None else window // 2
    return reach, 0 if causal else reach


def choose(implementation: str, device_type: str, dtype: torch.dtype) -> str:
    """The backend for an `attn_implementation`, on a type of device.

    Raises:
        ConfigurationError: there is none, and what would be right.
    """
    if implementation == "auto":
        return "varlen" if device_type == "cuda" and dtype in HALF else "sdpa"
    if implementation not in BACKENDS:
        near = get_close_matches(implementation, ("auto", *BACKENDS), n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ConfigurationError(
            f"attn_implementation: '{implementation}' is not one of auto, {', '.join(BACKENDS)}{hint}"
        )
    asked = f"'model.attn_implementation: {implementation}'"
    if implementation != "sdpa" and device_type != "cuda":
        raise ConfigurationError(f"{asked} needs a CUDA GPU, and this is {device_type}; there, give 'sdpa' or 'auto'")
    if implementation != "sdpa" and dtype not in HALF:
        raise ConfigurationError(f"{asked} computes in bf16 only: give 'precision: amp_bf16', or 'sdpa', or 'auto'")
    if implementation == "flash" and not flash_attn_is_installed():
        raise ConfigurationError(
            f"{asked} needs flash-attn: pip install --no-build-isolation -e '.[gpu]'; 'varlen' does without"
        )
    return implementation


def check_implementation(implementation: str, device_type: str, precision: str) -> str:
    """The backend of training on a type of device, in fp32 or amp_bf16; raises what `attention` would raise there."""
    return choose(implementation, device_type, torch.bfloat16 if precision == "amp_bf16" else torch.float32)
