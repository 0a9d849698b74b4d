"""ModernBERT's encoder (arXiv 2412.13663, section 2.1) on unpadded tokens.

- One flat sequence of tokens from end to end: documents stand one after another, `cu_seqlens` says where, and the rows
  of a batch are documents like any other. No padding is ever embedded.
- Modules and parameters bear the names that transformers' ModernBertModel gives them, so a checkpoint of ours, an
  export and a download hold the same state dict.
- The theta of the global layers belongs to the stage: whoever sets `rope_theta` changes the next forward. As a buffer
  it would be saved, and a resumed run would hear its schedule from two sides.
- A layer's parameters are used in its own forward only, and what all layers share comes down to them, `Documents` and
  rotary tables: so FSDP can shard the model layer by layer, and a compiled layer is not compiled anew for a theta.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from rotary_foundry.models.layers.attention import attention
from rotary_foundry.models.layers.autocast import compute_dtype
from rotary_foundry.models.layers.documents import Documents, check_documents
from rotary_foundry.models.layers.rotary import RotaryTables, rotary_tables, rotate
from rotary_foundry.recipe.schema import ModelConfig
from rotary_foundry.recipe.validation import model_problems, theta_problems
from rotary_foundry.utils.errors import ConfigurationError


class Encoder(nn.Module):
    """Token ids to hidden states. `rope_theta`, the rotary base of the global layers, may be set anew at any time.

    Raises:
        ConfigurationError: there is no model of such a shape, or theta is not positive and finite.
    """

    def __init__(self, config: ModelConfig, rope_theta: float):
        super().__init__()
        for key, complaint in model_problems(config):
            raise ConfigurationError(f"ModelConfig.{key}: {complaint}")
        self.rope_theta = rope_theta
        self.local_rope_theta = config.local_rope_theta
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(EncoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.final_norm = norm(config)

    @property
    def rope_theta(self) -> float:
        return self._rope_theta

    @rope_theta.setter
    def rope_theta(self, theta: float) -> None:
        for key, complaint in theta_problems("rope_theta", theta):
            raise ConfigurationError(f"{key}: {complaint}")
        self._rope_theta = theta

    def forward(self, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int | None = None) -> Tensor:
        """Encode documents that stand one after another.

        Args:
            input_ids: [tokens] int64.
            cu_seqlens: [documents + 1] int32, the first token of each document, and last the number of tokens.
            max_seqlen: tokens of the longest document, or more. Computed if not given, which waits for a GPU.

        Returns:
            hidden states [tokens, hidden]

        Raises:
            DataError: the three do not fit each other, or the vocabulary; values are looked at on the CPU only.
        """
        check_documents(input_ids, cu_seqlens, max_seqlen, self.embeddings.tok_embeddings.num_embeddings)
        if max_seqlen is None:
            max_seqlen = int(cu_seqlens.diff().max()) if len(cu_seqlens) > 1 else 0
        documents = Documents(cu_seqlens, max_seqlen, tokens=len(input_ids))
        hidden = self.embeddings(input_ids)  # [tokens, hidden]
        global_rotary, local_rotary = (
            rotary_tables(documents, self.head_dim, theta, compute_dtype(hidden))
            for theta in (self.rope_theta, self.local_rope_theta)
        )
        for layer in self.layers:
            hidden = layer(hidden, documents, global_rotary if layer.attn.window is None else local_rotary)
        return self.final_norm(hidden)


class Embeddings(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.norm = norm(config)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.norm(self.tok_embeddings(input_ids))


class EncoderLayer(nn.Module):
    def __init__(self, config: ModelConfig, index: int):
        super().__init__()
        self.attn_norm = norm(config) if index > 0 else nn.Identity()  # the embedding comes normed
        self.attn = Attention(
            config, window=config.local_attention if index % config.global_attn_every_n_layers else None
        )
        self.mlp_norm = norm(config)
        self.mlp = GeGLU(config)

    def forward(self, hidden: Tensor, documents: Documents, rotary: RotaryTables) -> Tensor:
        # cast by hand: inductor (torch 2.7) would fuse product and sum to an addmm of two dtypes, which there is not
        hidden = hidden + self.attn(self.attn_norm(hidden), documents, rotary).to(hidden.dtype)
        return hidden + self.mlp(self.mlp_norm(hidden)).to(hidden.dtype)


class Attention(nn.Module):
    """Attention to the whole document if `window` is None, else to the tokens at most window // 2 away."""

    def __init__(self, config: ModelConfig, window: int | None):
        super().__init__()
        self.window = window
        self.implementation = config.attn_implementation
        self.heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.Wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.Wo = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.out_drop = nn.Dropout(config.attn_out_dropout)

    def forward(self, x: Tensor, documents: Documents, rotary: RotaryTables) -> Tensor:
        qkv = self.Wqkv(x).unflatten(1, (3 * self.heads, self.head_dim))
        qk, v = qkv.split((2 * self.heads, self.heads), dim=1)  # queries and keys turn in one go
        q, k = rotate(qk, *rotary).chunk(2, dim=1)
        # q, k, v and out: [tokens, heads, head_dim]
        out = attention(q, k, v, documents, self.window, self.implementation)
        return self.out_drop(self.Wo(out.flatten(1)))


class GeGLU(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.Wi = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.Wo = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.Wi(x).chunk(2, dim=1)  # each [tokens, intermediate]
        return self.Wo(F.gelu(value) * gate)


def norm(config: ModelConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=False)
