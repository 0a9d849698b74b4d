"""Attention by torch's `varlen_attn`: the default on CUDA in bf16 and fp16.

- It is part of torch, unpadded, and a custom op, so a compiled layer traces through it.
- FlashAttention 3 (Hopper) or 4 (Blackwell) computes it if that is installed, through torch's own registry.
- Otherwise torch chooses between its own FlashAttention 2 and, from 2.14 on, cuDNN. cuDNN's backward does not follow
  `torch.use_deterministic_algorithms`; the three FlashAttentions do. So cuDNN is excluded under deterministic
  algorithms, and if FlashAttention 3 or 4 is in use.

No GPU was available when this was written. Tests run the real `varlen_attn`, its autograd and its tracing on CPU, with
exact kernels in place of torch's (tests/models/flash_stand_in.py).
"""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec
from inspect import signature

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, activate_flash_attention_impl, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn

from rotary_foundry.models.layers.documents import Documents
from rotary_foundry.utils.errors import ConfigurationError
from rotary_foundry.utils.wording import one_line

HEAD_DIM_MULTIPLE = 8  # the kernels need it
# torch 2.11 has no such argument, and leaves the number of key/value heads to the kernel.
HAS_ENABLE_GQA = "enable_gqa" in signature(varlen_attn).parameters
# By compute capability: torch's name for the kernels, the package that has them, and the first torch that can use them.
# torch 2.11 has FlashAttention 4 without windows, and `varlen_attn` always passes a window.
NEWER_KERNELS = {9: ("FA3", "flash_attn_interface", (2, 11)), 10: ("FA4", "flash_attn.cute", (2, 13))}


def varlen_attention(q: Tensor, k: Tensor, v: Tensor, documents: Documents, window_size: tuple[int, int]) -> Tensor:
    """Compute `attention` (attention.py) for q, k and v in bf16 or fp16. window_size: as in attention.py.

    Raises:
        ConfigurationError: head_dim is not a multiple of 8, or torch cannot load an installed newer FlashAttention.
    """
    if q.shape[2] % HEAD_DIM_MULTIPLE:
        raise ConfigurationError(
            f"attn_implementation 'varlen': a head_dim of {q.shape[2]} is not a multiple of {HEAD_DIM_MULTIPLE}; "
            "give 'sdpa', or another number of heads"
        )
    newer = use_newer_kernels(q.device.type)
    grouped = {"enable_gqa": True} if HAS_ENABLE_GQA and q.shape[1] != k.shape[1] else {}
    with _flash_only(newer is not None):
        return varlen_attn(
            q,
            k,
            v,
            documents.cu_seqlens,
            documents.cu_seqlens,
            documents.max_seqlen,
            documents.max_seqlen,
            window_size=window_size,
            **grouped,
        )


def _flash_only(newer: bool) -> AbstractContextManager:
    """Exclude cuDNN under deterministic algorithms and if a newer FlashAttention is in use."""
    if newer or torch.are_deterministic_algorithms_enabled():
        return sdpa_kernel(SDPBackend.FLASH_ATTENTION)
    return nullcontext()


@torch.compiler.assume_constant_result  # called while a layer is traced; the graph keeps its answer
def use_newer_kernels(device_type: str) -> str | None:
    """Make torch use the FlashAttention made for this GPU; runs once per process.

    Args:
        device_type: only a GPU has newer kernels.

    Returns:
        FA3 or FA4; None if none is installed, and torch's own kernels stay in use.

    Raises:
        ConfigurationError: one is installed, but torch cannot load it.
    """
    return _activated() if device_type == "cuda" else None


@cache
def _activated() -> str | None:
    name, package, torch_version = NEWER_KERNELS.get(torch.cuda.get_device_capability()[0], ("", "", ()))
    if not name or not _is_installed(package) or torch.__version__ < torch_version:
        return None
    try:
        activate_flash_attention_impl(name)
    except Exception as error:  # an undefined symbol is an ImportError, a package without kernels a RuntimeError
        raise ConfigurationError(
            f"'model.attn_implementation: varlen': torch {torch.__version__} cannot load {package} ({name}): "
            f"{one_line(error)}; build it for this torch, or uninstall it"
        ) from error
    return name


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # its parent package is not installed either
        return False
