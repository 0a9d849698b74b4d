"""ModernBERT's encoder (arXiv 2412.13663, section 2.1) on unpadded tokens.

- All layers work on one flat sequence of tokens. It holds the documents of all rows of a batch one after another, and
  `cu_seqlens` holds their bounds. Padding is never embedded.
- Modules and parameters have the names of transformers' ModernBertModel, so our checkpoints, exports and downloads have
  the same state dict.
- Thetas and dropout are knobs: the plan sets them, and the next forward pass uses them. They are not buffers, because a
  buffer would be saved, and a resumed run would have two sources for the same value.
- A layer's parameters are used only in its own forward, and shared values (`Documents` and rotary tables) are passed to
  it as arguments. So FSDP can shard the model layer by layer, and a new theta does not recompile a compiled layer.
"""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from rotary_foundry.models.layers.attention import attention
from rotary_foundry.models.layers.autocast import compute_dtype
from rotary_foundry.models.layers.documents import Documents, checked_documents
from rotary_foundry.models.layers.network_with_knobs import NetworkWithKnobs
from rotary_foundry.models.layers.rotary import RotaryTables, rotary_tables, rotate
from rotary_foundry.models.modernbert.shape import KNOBS, Shape


class Encoder(NetworkWithKnobs):
    """Map token ids to hidden states.

    Args:
        shape: sizes of the model.
        knobs: a value for each of KNOBS; `set_knob` changes one.
        attn_implementation: auto, or one of the backends in layers/attention.py.

    Raises:
        ConfigurationError: the shape or the value of a knob is invalid.
    """

    of_family = KNOBS

    def __init__(self, shape: Shape, knobs: Mapping[str, float], attn_implementation: str = "auto"):
        super().__init__()
        shape.check()
        self.head_dim = shape.head_dim
        self.embeddings = Embeddings(shape)
        self.layers = nn.ModuleList(
            EncoderLayer(shape, layer, attn_implementation) for layer in range(shape.num_hidden_layers)
        )
        self.final_norm = norm(shape)
        self.set_knobs(knobs)

    def set_knob(self, name: str, value: float) -> None:
        super().set_knob(name, value)
        if name == "attn_out_dropout":
            for layer in self.layers:
                layer.attn.out_drop.p = value

    def forward(self, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int | None = None) -> Tensor:
        """Encode documents in one flat sequence.

        Args:
            input_ids: [tokens] int64.
            cu_seqlens: [documents + 1] int32, the index of each document's first token, then the number of tokens.
            max_seqlen: at least the tokens of the longest document. If None it is computed, which waits for a GPU.

        Returns:
            hidden states [tokens, hidden]

        Raises:
            DataError: the arguments do not fit each other or the vocabulary; values are checked only on the CPU.
        """
        vocab_size = self.embeddings.tok_embeddings.num_embeddings
        documents = checked_documents(input_ids, cu_seqlens, max_seqlen, vocab_size)
        hidden = self.embeddings(input_ids)  # [tokens, hidden]
        global_rotary, local_rotary = (
            rotary_tables(documents, self.head_dim, theta, compute_dtype(hidden))
            for theta in (self.knobs["rope_theta"], self.knobs["local_rope_theta"])
        )
        for layer in self.layers:
            hidden = layer(hidden, documents, global_rotary if layer.attn.window is None else local_rotary)
        return self.final_norm(hidden)


class Embeddings(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.tok_embeddings = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.norm = norm(shape)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.norm(self.tok_embeddings(input_ids))


class EncoderLayer(nn.Module):
    def __init__(self, shape: Shape, layer: int, attn_implementation: str):
        super().__init__()
        self.attn_norm = norm(shape) if layer > 0 else nn.Identity()  # the embedding is already normed
        self.attn = Attention(shape, shape.window(layer), attn_implementation)
        self.mlp_norm = norm(shape)
        self.mlp = GeGLU(shape)

    def forward(self, hidden: Tensor, documents: Documents, rotary: RotaryTables) -> Tensor:
        # explicit casts: inductor (torch 2.7) would fuse product and sum to an addmm of two dtypes, which torch lacks
        hidden = hidden + self.attn(self.attn_norm(hidden), documents, rotary).to(hidden.dtype)
        return hidden + self.mlp(self.mlp_norm(hidden)).to(hidden.dtype)


class Attention(nn.Module):
    """Attention to the whole document if `window` is None, else to the tokens at most window // 2 away."""

    def __init__(self, shape: Shape, window: int | None, implementation: str):
        super().__init__()
        self.window = window
        self.implementation = implementation
        self.heads = shape.num_attention_heads
        self.head_dim = shape.head_dim
        self.Wqkv = nn.Linear(shape.hidden_size, 3 * shape.hidden_size, bias=False)
        self.Wo = nn.Linear(shape.hidden_size, shape.hidden_size, bias=False)
        self.out_drop = nn.Dropout()  # its probability is a knob

    def forward(self, x: Tensor, documents: Documents, rotary: RotaryTables) -> Tensor:
        qkv = self.Wqkv(x).unflatten(1, (3 * self.heads, self.head_dim))
        qk, v = qkv.split((2 * self.heads, self.heads), dim=1)  # queries and keys are rotated in one call
        q, k = rotate(qk, *rotary).chunk(2, dim=1)
        # q, k, v and out: [tokens, heads, head_dim]
        out = attention(q, k, v, documents, self.window, self.implementation)
        return self.out_drop(self.Wo(out.flatten(1)))


class GeGLU(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.Wi = nn.Linear(shape.hidden_size, 2 * shape.intermediate_size, bias=False)
        self.Wo = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.Wi(x).chunk(2, dim=1)  # each [tokens, intermediate]
        return self.Wo(F.gelu(value) * gate)


def norm(shape: Shape) -> nn.LayerNorm:
    return nn.LayerNorm(shape.hidden_size, eps=shape.norm_eps, bias=False)
