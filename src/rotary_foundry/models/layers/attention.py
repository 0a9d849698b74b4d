"""Attention within the documents of a flat sequence: one function, with one module for each backend.

- `auto` is `varlen` on CUDA in bf16 or fp16, and `sdpa` on CPU and for float32. `flash`, the flash-attn package, is
  used only if it is configured. All three take the flat sequence and give the same numbers up to rounding.
- The backend is chosen at every call from the setting, the device and the dtype. This costs nothing, and a network that
  is moved to another device or dtype uses the right backend. Training calls the same function before it builds a model,
  so an unsupported setting is refused at once.
- FlexAttention was removed. It needed a compiled kernel and block masks for what `varlen` computes without either, and
  copied the sequence in and out: by estimate 10 to 15 % slower than FlashAttention 2, never measured on a GPU.

Softmax attention has no parameters, so nothing here is a Module.
"""

import torch
from torch import Tensor

from rotary_foundry.models.layers.attention_flash import (
    flash_attention,
    flash_attn_is_installed,
    has_flash_attention_3,
)
from rotary_foundry.models.layers.attention_sdpa import sdpa_attention
from rotary_foundry.models.layers.attention_varlen import HEAD_DIM_MULTIPLE, use_newer_kernels, varlen_attention
from rotary_foundry.models.layers.documents import Documents
from rotary_foundry.utils.errors import ConfigurationError
from rotary_foundry.utils.installing import install_command
from rotary_foundry.utils.wording import nearest

BACKENDS = {"varlen": varlen_attention, "flash": flash_attention, "sdpa": sdpa_attention}
HALF = (torch.bfloat16, torch.float16)
MOST_HEAD_DIM = 256


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
        q: [tokens, heads, head_dim], rotated by their positions.
        k, v: [tokens, kv_heads, head_dim], k rotated as well. kv_heads divides heads; query head h reads key head
            h // (heads // kv_heads).
        documents: the bounds of the documents, `cu_seqlens` and `max_seqlen`; caches what a backend derives from them.
        window: None: attend to the whole document; else only to the tokens at most window // 2 away.
        implementation: auto, varlen, flash or sdpa.
        causal: hide the tokens after the query. A window then has only the half before the query: a Mistral-like window
            of the last n tokens is `window=2 * (n - 1)`.

    Returns:
        [tokens, heads, head_dim]

    Raises:
        ConfigurationError: the implementation does not support this device or dtype, or kv_heads does not divide heads.
    """
    if q.shape[1] % k.shape[1]:
        raise ConfigurationError(f"attention: {k.shape[1]} key/value heads do not divide {q.shape[1]} query heads")
    chosen = choose(implementation, q.device.type, q.dtype)
    if q.shape[0] == 0:
        return q + k.sum() + v.sum()  # empty, with gradients for all three
    return BACKENDS[chosen](q, k, v, documents, window_size(window, causal))


def window_size(window: int | None, causal: bool) -> tuple[int, int]:
    """Return how many tokens a query sees before and after itself; -1: all."""
    reach = -1 if window is None else window // 2
    return reach, 0 if causal else reach


def choose(implementation: str, device_type: str, dtype: torch.dtype) -> str:
    """Choose the backend for an `attn_implementation` on a type of device.

    Raises:
        ConfigurationError: the setting is unknown or not supported here; names the supported ones.
    """
    if implementation == "auto":
        return "varlen" if device_type == "cuda" and dtype in HALF else "sdpa"
    if implementation not in BACKENDS:
        known = nearest(implementation, ("auto", *BACKENDS))
        raise ConfigurationError(f"attn_implementation: '{implementation}' is not known; {known}")
    asked = f"'model.attn_implementation: {implementation}'"
    if implementation != "sdpa" and device_type != "cuda":
        raise ConfigurationError(f"{asked} needs a CUDA GPU, got {device_type}; set 'sdpa' or 'auto'")
    if implementation != "sdpa" and dtype not in HALF:
        raise ConfigurationError(f"{asked} computes in bf16 only; set 'precision: amp_bf16', or 'sdpa', or 'auto'")
    if implementation == "flash" and not flash_attn_is_installed():
        raise ConfigurationError(
            f"{asked} needs flash-attn: {install_command('gpu', '--no-build-isolation')}; 'varlen' does not need it"
        )
    return implementation


def check_implementation(implementation: str, device_type: str, precision: str) -> str:
    """Return the backend for training on a type of device, in fp32 or amp_bf16; raises as `attention` would."""
    return choose(implementation, device_type, torch.bfloat16 if precision == "amp_bf16" else torch.float32)


def check_kernels(chosen: str, head_dim: int, device: torch.device) -> None:
    """Refuse what the kernels of a backend would refuse in the first forward pass on a GPU, the current device.

    FlashAttention takes head sizes that are multiples of 8, up to 256. torch's kernels say so in their errors (torch
    2.15's libtorch_cuda), and so do FlashAttention 2 (csrc/flash_attn/flash_api.cpp of flash-attn 2.8.3) and 3
    (hopper/flash_api.cpp). The package of FlashAttention 2 pads other sizes (its flash_attn_interface.py). sdpa takes
    any. FlashAttention 4 takes fewer sizes on Blackwell, which depend on its version and are not checked here.

    Raises:
        ConfigurationError: the head size, or a newer FlashAttention that is installed and that torch cannot load.
    """
    if chosen == "sdpa":
        return
    if chosen == "varlen":
        use_newer_kernels(device.type)
    pads = chosen == "flash" and not has_flash_attention_3(device)
    if head_dim > MOST_HEAD_DIM or (head_dim % HEAD_DIM_MULTIPLE and not pads):
        raise ConfigurationError(
            f"'model.num_attention_heads': the kernels of '{chosen}' take heads of "
            f"{'' if pads else f'a multiple of {HEAD_DIM_MULTIPLE}, '}at most {MOST_HEAD_DIM}, got {head_dim} "
            "(hidden_size / num_attention_heads); set another number of heads, or model.attn_implementation: sdpa"
        )
