"""ModernBERT's encoder (arXiv 2412.13663) on unpadded tokens.

Decisions:
- One flat sequence of tokens from end to end: documents stand one after another, `cu_seqlens` says where, no padding is
  ever embedded. Rows of a batch are documents like any other.
- Modules and parameters bear the names of transformers' ModernBertModel, so that a checkpoint, an export and a
  download are the same state dict.
- The theta of the global layers is the stage's, so it is a plain attribute: set it, and the next forward uses it. As a
  buffer it would be saved, and a resumed run would take its schedule from two places.
- What the layers share (positions, rotary tables, masks) comes down from the encoder in one `Documents`. A block's
  parameters are used inside its own forward only: that is what lets FSDP shard block by block.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoder_foundry.model.attention import attention
from encoder_foundry.model.documents import Documents
from encoder_foundry.model.rotary import rotary_tables, rotate
from encoder_foundry.recipe.schema import ModelConfig


class Encoder(nn.Module):
    """Token ids to hidden states.

    Args:
        config: the model's shape.
        rope_theta: base of the rotary frequencies of the global layers; may be set anew at any time.
    """

    def __init__(self, config: ModelConfig, rope_theta: float):
        super().__init__()
        self.rope_theta = rope_theta
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(EncoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.final_norm = _norm(config)

    def forward(self, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int | None = None) -> Tensor:
        """input_ids [tokens] int64, cu_seqlens [documents + 1] int32 → hidden states [tokens, hidden]."""
        if max_seqlen is None:
            max_seqlen = int(cu_seqlens.diff().max())
        documents = Documents(cu_seqlens, max_seqlen, len(input_ids))
        hidden = self.embeddings(input_ids)
        for layer in self.layers:
            hidden = layer(hidden, documents, self.rope_theta)
        return self.final_norm(hidden)


class Embeddings(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.norm = _norm(config)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.norm(self.tok_embeddings(input_ids))


class EncoderLayer(nn.Module):
    def __init__(self, config: ModelConfig, index: int):
        super().__init__()
        self.attn_norm = _norm(config) if index > 0 else nn.Identity()  # the embedding is normed already
        self.attn = Attention(config, is_global=index % config.global_attn_every_n_layers == 0)
        self.mlp_norm = _norm(config)
        self.mlp = GeGLU(config)

    def forward(self, hidden: Tensor, documents: Documents, rope_theta: float) -> Tensor:
        hidden = hidden + self.attn(self.attn_norm(hidden), documents, rope_theta)
        return hidden + self.mlp(self.mlp_norm(hidden))


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, is_global: bool):
        super().__init__()
        self.heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.window = None if is_global else config.local_attention
        self.local_rope_theta = config.local_rope_theta
        self.Wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.Wo = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.out_drop = nn.Dropout(config.attn_out_dropout)

    def forward(self, x: Tensor, documents: Documents, rope_theta: float) -> Tensor:
        qkv = self.Wqkv(x).view(-1, 3 * self.heads, self.head_dim)
        qk, v = qkv.split((2 * self.heads, self.heads), dim=1)
        theta = rope_theta if self.window is None else self.local_rope_theta
        cos, sin = rotary_tables(documents, self.head_dim, theta, qk.dtype)
        out = attention(*rotate(qk, cos, sin).chunk(2, dim=1), v, documents, self.window)
        return self.out_drop(self.Wo(out.flatten(1)))


class GeGLU(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.Wi = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.Wo = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.Wi(x).chunk(2, dim=-1)
        return self.Wo(F.gelu(value) * gate)


def _norm(config: ModelConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=False)
