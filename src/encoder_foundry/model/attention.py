"""Attention within documents on a flat sequence: one function, and behind it one module for each way to compute it."""

from torch import Tensor

from encoder_foundry.model.attention_sdpa import sdpa_attention
from encoder_foundry.model.documents import Documents


def attention(q: Tensor, k: Tensor, v: Tensor, documents: Documents, window: int | None) -> Tensor:
    """Softmax attention of every token to the tokens of its own document, both ways.

    Args:
        q, k, v: [tokens, heads, head_dim], rotary positions already applied.
        documents: where each document begins and ends (`cu_seqlens`, `max_seqlen`).
        window: None to see the whole document, else the tokens at most window // 2 away on either side.

    Returns:
        [tokens, heads, head_dim]
    """
    return sdpa_attention(q, k, v, documents, window)
