"""Attention by torch's FlexAttention: the backend for GPUs without flash-attn, and for float32.

- One block mask for all layers of a window, made once a forward. It is worked out for blocks of 128 tokens: as
  documents are contiguous, which of two blocks' tokens see each other follows from the first and the last document in
  each. torch's `create_block_mask` lost: it writes down every pair of tokens, 9 GiB for 96 rows of 1024.
- The kernel is compiled for dynamic lengths, since every microbatch has its own: a graph for each window, and not one
  for each length. For that the sequence is filled up to whole blocks (below 128 queries torch takes another kernel)
  and to two of them at least (torch specialises on a size of 1). The filling is a document of its own, so that no
  query is without keys. `fullgraph`: where torch would give up compiling and fall back to the whole matrix of scores,
  it is to say so.
- On CPU, torch 2.7 compiles no backward, and a wrong forward for the global mask. There the function computes by the
  whole matrix of scores, which is good for tests only; attention.py refuses it.
"""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import flex_attention as flex
from torch.nn.attention.flex_attention import BlockMask

from rotary_foundry.models.layers.documents import Documents

BLOCK = 128  # tokens, FlexAttention's own default


def flex_attention(q: Tensor, k: Tensor, v: Tensor, documents: Documents, window: int | None) -> Tensor:
    """The `attention` of attention.py."""
    mask = documents.once(("flex", window), lambda: block_mask(documents, None if window is None else window // 2))
    filling = mask.shape[-1] - documents.tokens
    q, k, v = (F.pad(x.transpose(0, 1), (0, 0, 0, filling)).unsqueeze(0) for x in (q, k, v))  # [1, heads, filled, …]
    out = kernel(q.device.type)(q, k, v, block_mask=mask)
    return out[0, :, : documents.tokens].transpose(0, 1)


def block_mask(documents: Documents, reach: int | None) -> BlockMask:
    """Which tokens see each other: those of a document, if `reach` is given those at most so far apart."""
    blocks = max(2, -(-documents.tokens // BLOCK))
    filling = blocks * BLOCK - documents.tokens
    document = F.pad(documents.index, (0, filling), value=len(documents.cu_seqlens))
    first, last = document.view(blocks, BLOCK)[:, 0], document.view(blocks, BLOCK)[:, -1]
    some = (first[:, None] <= last) & (first <= last[:, None])  # [blocks, blocks]: a document has tokens in both
    every = (first[:, None] == last) & (first == last[:, None])  # both are of one document
    if reach is not None:
        block = torch.arange(blocks, device=document.device)
        apart = (block[:, None] - block).abs()
        some &= (apart - 1) * BLOCK + 1 <= reach  # their nearest tokens
        every &= (apart + 1) * BLOCK - 1 <= reach  # their farthest

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = document[query] == document[key]
        return same if reach is None else same & ((query - key).abs() <= reach)

    return BlockMask.from_kv_blocks(*_listed(some & ~every), *_listed(every), BLOCK_SIZE=BLOCK, mask_mod=sees)


def _listed(pairs: Tensor) -> tuple[Tensor, Tensor]:
    """How many key blocks each query block has, and their indices, those first. pairs: [blocks, blocks] bool"""
    pairs = pairs[None, None].int()  # for every batch and head
    return pairs.sum(-1, dtype=torch.int32), pairs.argsort(dim=-1, descending=True, stable=True).int()


@cache
def kernel(device_type: str) -> Callable[..., Tensor]:
    return compiled() if device_type == "cuda" else flex.flex_attention


def compiled(backend: str | Callable = "inductor") -> Callable[..., Tensor]:
    return torch.compile(flex.flex_attention, dynamic=True, fullgraph=True, backend=backend)
