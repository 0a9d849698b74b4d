"""Attention by torch's SDPA: the backend for CPU, and for float32 on any device.

One SDPA call attends within rectangles (queries × keys) of one size. So the flat sequence is cut into tiles. A tile is
a number of equal rectangles at equal distances; it is one SDPA call on views, without a copy.

- Global layers: a tile is a run of neighbouring documents of equal length, so usually one document. It needs neither
  padding nor a mask: the kernel's own causal attention skips the keys after a query. Padding documents to shared
  lengths would save calls, but documents of 60 tokens train no slower than those of 200.
- Local layers: blocks of 128 queries attend to the 256 keys around them (for a window of 128), under a mask of document
  and distance. So the cost is linear in length for any documents. Neighbouring blocks share keys, but every second
  block does not: the even blocks are one tile, the odd ones another, and the gradients of shared keys are added in
  place. In causal windows, a block attends to its own keys and those before it.
- If there are fewer key/value heads than query heads, the kernels share them; nothing is repeated in memory.

On CPU the kernels are called outside autograd, for two reasons. The gradient of each slice would be as long as the
whole sequence. And for short sides the bfloat16 backward takes two to four times as long as the float32 one (torch 2.7
on a processor with AMX); there the forward pass is in bfloat16 and the backward pass in float32.

On a GPU this serves float32, by SDPA under autograd. cuDNN's backward ignores `torch.use_deterministic_algorithms`, so
cuDNN is excluded under that setting.
"""

from contextlib import nullcontext
from itertools import groupby
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from rotary_foundry.compat.torch import cpu_flash_attention, cpu_flash_attention_backward
from rotary_foundry.models.layers.documents import Documents

BLOCK = 128  # queries of a local block, unless the window is wider
FLOAT32_BACKWARD_KEYS = 384  # at 256 keys float32 takes 0.6 to 0.8 times bfloat16's time, at 512 about 1.15 times
DETERMINISTIC = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class Span(NamedTuple):
    """Pieces of `size` tokens, the first at `start` and one more every `step` tokens."""

    start: int
    size: int
    step: int

    def of(self, x: Tensor, count: int) -> Tensor:
        """Return a view of the first `count` pieces. x: [tokens, …] → [count, …, size]"""
        end = self.start + (count - 1) * self.step + self.size
        return x[self.start : end].unfold(0, self.size, self.step)


class Tile(NamedTuple):
    """`count` rectangles of one size."""

    count: int
    queries: Span
    keys: Span
    bias: Tensor | None = None  # [count, 1, queries, keys]: 0 where a query sees a key, else -inf
    causal: bool = False  # without a bias: each query sees the keys up to its own place

    def rows(self, x: Tensor, span: Span) -> Tensor:
        """Return a view of the tile's pieces. x: [tokens, heads, head_dim] → [count, heads, size, head_dim]"""
        return span.of(x, self.count).mT


@torch.compiler.disable  # the number of calls changes with every batch, so a compiled layer breaks its graph here
def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, documents: Documents, window_size: tuple[int, int]) -> Tensor:
    """Compute `attention` (attention.py) on any device. window_size: as in attention.py."""
    before, after = window_size

    def cut() -> list[Tile]:
        if before < 0:
            return global_tiles(documents, causal=after == 0)
        return local_tiles(documents, before, after, q.dtype)

    tiles = documents.once(("sdpa", window_size, q.dtype), cut)
    return _OnCPU.apply(q, k, v, tiles) if q.device.type == "cpu" else elsewhere(q, k, v, tiles)


def global_tiles(documents: Documents, causal: bool = False) -> list[Tile]:
    """Return the tiles in which every document attends to itself."""
    tiles, start = [], 0
    for length, run in groupby(length for length in documents.lengths if length > 0):
        span, count = Span(start, length, length), len(list(run))
        tiles.append(Tile(count, span, span, causal=causal))
        start += count * length
    return tiles


def local_tiles(documents: Documents, before: int, after: int, dtype: torch.dtype) -> list[Tile]:
    """Return tiles in which blocks of queries attend to the tokens up to `before` before and `after` after them."""
    # with narrower blocks, even every second block would share keys
    tokens, block = documents.tokens, max(BLOCK, before + after)
    starts = range(0, tokens, block)
    whole = [start for start in starts if start >= before and start + block + after <= tokens]
    tiles = [
        Tile(
            len(blocks),
            Span(blocks[0], block, 2 * block),
            Span(blocks[0] - before, before + block + after, 2 * block),
        )
        for blocks in (whole[0::2], whole[1::2])
        if blocks
    ]
    for start in sorted(set(starts) - set(whole)):  # at either end of the sequence
        queries = Span(start, min(block, tokens - start), block)
        first = max(0, start - before)
        tiles.append(Tile(1, queries, Span(first, min(start + block + after, tokens) - first, block)))
    return [tile._replace(bias=_bias(tile, documents.index, before, after, dtype)) for tile in tiles]


def _bias(tile: Tile, document: Tensor, before: int, after: int, dtype: torch.dtype) -> Tensor:
    query = torch.arange(tile.queries.size, device=document.device) + tile.queries.start
    key = torch.arange(tile.keys.size, device=document.device) + tile.keys.start
    distance = key - query[:, None]  # [queries, keys]
    near = (distance >= -before) & (distance <= after)
    same = tile.queries.of(document, tile.count).unsqueeze(2) == tile.keys.of(document, tile.count).unsqueeze(1)
    bias = torch.zeros(same.shape, dtype=dtype, device=document.device)
    return bias.masked_fill_(~(same & near), float("-inf")).unsqueeze(1)


class _OnCPU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, tiles: list[Tile]) -> Tensor:
        out, logsumexps = torch.empty_like(q), []
        for tile in tiles:
            queries, keys, values = tile.rows(q, tile.queries), tile.rows(k, tile.keys), tile.rows(v, tile.keys)
            attended, logsumexp = cpu_flash_attention(queries, keys, values, is_causal=tile.causal, attn_mask=tile.bias)
            tile.rows(out, tile.queries).copy_(attended)
            logsumexps.append(logsumexp)
        ctx.save_for_backward(q, k, v, out, *logsumexps)
        ctx.tiles = tiles
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out, *logsumexps = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), *_key_gradients(k, ctx.tiles)
        for index, (tile, logsumexp) in enumerate(zip(ctx.tiles, logsumexps, strict=True)):
            short = tile.keys.size <= FLOAT32_BACKWARD_KEYS
            dtype = torch.promote_types(q.dtype, torch.float32) if short else q.dtype
            tile_grad, queries, attended = (tile.rows(x, tile.queries).to(dtype) for x in (grad, q, out))
            keys, values = (tile.rows(x, tile.keys).to(dtype) for x in (k, v))
            bias = None if tile.bias is None else tile.bias.to(dtype)
            grads = cpu_flash_attention_backward(
                tile_grad,
                queries,
                keys,
                values,
                attended,
                logsumexp,
                dropout_p=0.0,
                is_causal=tile.causal,
                attn_mask=bias,
            )
            tile.rows(dq, tile.queries).copy_(grads[0])
            for whole, part in ((dk, grads[1]), (dv, grads[2])):
                rows = tile.rows(whole, tile.keys)
                rows.copy_(part) if index == 0 or tile.bias is None else rows.add_(part)
        return dq, dk.to(k.dtype), dv.to(v.dtype), None


def _key_gradients(k: Tensor, tiles: list[Tile]) -> tuple[Tensor, Tensor]:
    """Allocate the gradients of keys and values, zero where the first tile does not write.

    Without a bias, tiles share no keys. With a bias they do, so all tiles after the first add to the gradients, in
    float32 or float64. The first tile leaves no gap if windows are as wide as blocks.
    """
    if not tiles or tiles[0].bias is None:
        return torch.empty_like(k), torch.empty_like(k)
    count, keys = tiles[0].count, tiles[0].keys
    gapless = keys.size == keys.step or count == 1
    end = keys.start + (count - 1) * keys.step + keys.size if gapless else keys.start
    dtype = torch.promote_types(k.dtype, torch.float32)
    gradients = torch.empty(k.shape, dtype=dtype), torch.empty(k.shape, dtype=dtype)
    for gradient in gradients:
        gradient[: keys.start].zero_()
        gradient[end:].zero_()
    return gradients


def elsewhere(q: Tensor, k: Tensor, v: Tensor, tiles: list[Tile]) -> Tensor:
    """Compute the same by SDPA and autograd, on any device."""
    outs, order = [], []
    with sdpa_kernel(DETERMINISTIC) if torch.are_deterministic_algorithms_enabled() else nullcontext():
        for tile in tiles:
            queries, keys, values = tile.rows(q, tile.queries), tile.rows(k, tile.keys), tile.rows(v, tile.keys)
            grouped = q.shape[1] != k.shape[1]
            out = F.scaled_dot_product_attention(
                queries, keys, values, attn_mask=tile.bias, is_causal=tile.causal, enable_gqa=grouped
            )
            outs.append(out.transpose(1, 2).flatten(0, 1))
            order.append(tile.queries.of(torch.arange(len(q), device=q.device), tile.count).flatten())
    return torch.cat(outs)[torch.cat(order).argsort()]
