"""Attention within the documents of a flat sequence: one function, and behind it a module for each way to compute it.

The only one so far is `attention_sdpa`. Softmax attention has no parameters, so nothing here is a Module.
"""

from torch import Tensor

from encoder_foundry.model.attention_sdpa import sdpa_attention
from encoder_foundry.model.documents import Documents


def attention(q: Tensor, k: Tensor, v: Tensor, documents: Documents, window: int | None) -> Tensor:
    """Attention of every token to its own document, before it and after it.

    Args:
        q, k, v: [tokens, heads, head_dim], turned by their positions.
        documents: where the documents lie; has `cu_seqlens` and `max_seqlen`, and keeps what a backend derives of them.
        window: None to see the whole document, else only the tokens at most window // 2 away.

    Returns:
        [tokens, heads, head_dim]
    """
    return sdpa_attention(q, k, v, documents, window)
