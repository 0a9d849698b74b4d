"""Llama on unpadded tokens: the decoder, and the output that predicts the next token.

- Pre-norm: x ← x + F(norm(x)) for attention and for SwiGLU. A norm divides by the root mean square and has a gain.
  Nothing has a bias. The output is a matrix of its own, or the embedding.
- A token attends to itself and to the tokens before it in its document. With fewer heads of keys and values than of
  queries, several heads of queries read the same keys (GQA); nothing is repeated in memory.
- Modules and parameters have the names of transformers' LlamaForCausalLM, so our checkpoints, exports and downloads
  have the same state dict. One matrix for queries, keys and values would need other names and had no measured gain.
- All layers work on one flat sequence of tokens, and shared values are passed to a layer as arguments, so FSDP can
  shard the model layer by layer. With labels, the loss is computed inside `forward`, where FSDP holds the whole output.
"""

from collections.abc import Iterable, Mapping
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rotary_foundry.models.layers.attention import attention
from rotary_foundry.models.layers.autocast import compute_dtype
from rotary_foundry.models.layers.cross_entropy import TokenLoss, linear_cross_entropy
from rotary_foundry.models.layers.documents import Documents, check_labels, checked_documents
from rotary_foundry.models.layers.network_with_knobs import NetworkWithKnobs
from rotary_foundry.models.layers.rope_scaling import RopeScaling
from rotary_foundry.models.layers.rotary import RotaryTables, rotary_tables, rotate
from rotary_foundry.models.llama.shape import KNOBS, Shape
from rotary_foundry.objectives.objective import IGNORE_INDEX


class Llama(NetworkWithKnobs):
    """Map token ids to logits over the vocabulary, or to a loss.

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
        self.shape = shape
        self.model = Decoder(shape, attn_implementation)
        if not shape.tie_word_embeddings:
            self.lm_head = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)
        self.set_knobs(knobs)

    @property
    def blocks(self) -> Iterable[nn.Module]:
        return self.model.layers

    def forward(
        self,
        input_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int | None = None,
        labels: Tensor | None = None,
        predicted: Tensor | None = None,
        weights: Tensor | None = None,
        scored: Tensor | None = None,
    ) -> Tensor | TokenLoss:
        """Compute logits for every token, or, with labels, the loss.

        Args:
            input_ids, cu_seqlens, max_seqlen: as for `hidden_states`.
            labels: [tokens] int64, the token after each; IGNORE_INDEX where nothing is to be predicted.
            predicted: [labels] int64, the positions of all other labels. If None they are found; this waits for a GPU.
            weights, scored: [tokens] float32 and bool, by label; as for `linear_cross_entropy`.

        Returns:
            logits [tokens, vocabulary], or a TokenLoss

        Raises:
            DataError: as for `hidden_states`, or the labels do not fit.
        """
        if labels is not None:
            check_labels(labels, input_ids, self.shape.vocab_size)
        hidden = self.hidden_states(input_ids, cu_seqlens, max_seqlen)
        if labels is None:
            return self.unembed(hidden)
        if predicted is None:
            predicted = (labels != IGNORE_INDEX).nonzero(as_tuple=True)[0]
        of_labels = (None if each is None else each[predicted] for each in (labels, weights, scored))
        return linear_cross_entropy(hidden.index_select(0, predicted), self._output, None, *of_labels)

    def hidden_states(self, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int | None = None) -> Tensor:
        """Decode documents in one flat sequence.

        Args:
            input_ids: [tokens] int64.
            cu_seqlens: [documents + 1] int32, the index of each document's first token, then the number of tokens.
            max_seqlen: at least the tokens of the longest document. If None it is computed, which waits for a GPU.

        Returns:
            hidden states [tokens, hidden]

        Raises:
            DataError: the arguments do not fit each other or the vocabulary; values are checked only on the CPU.
        """
        shape = self.shape
        documents = checked_documents(input_ids, cu_seqlens, max_seqlen, shape.vocab_size)
        hidden = self.model.embed_tokens(input_ids)  # [tokens, hidden]
        scaling = RopeScaling(shape.rope_scaling, self.knobs["rope_factor"], shape.original_max_position_embeddings)
        theta, dtype = self.knobs["rope_theta"], compute_dtype(hidden)
        rotary = rotary_tables(documents, shape.head_dim, theta, dtype, scaling)
        for layer in self.model.layers:
            hidden = layer(hidden, documents, rotary)
        return self.model.norm(hidden)

    def unembed(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self._output)

    @property
    def _output(self) -> Tensor:
        return self.model.embed_tokens.weight if self.shape.tie_word_embeddings else self.lm_head.weight


class Decoder(nn.Module):
    """The parameters of all parts except the output; `Llama.hidden_states` uses them."""

    def __init__(self, shape: Shape, attn_implementation: str):
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape, attn_implementation) for _ in range(shape.num_hidden_layers))
        self.norm = norm(shape)


class Layer(nn.Module):
    def __init__(self, shape: Shape, attn_implementation: str):
        super().__init__()
        self.input_layernorm = norm(shape)
        self.self_attn = Attention(shape, attn_implementation)
        self.post_attention_layernorm = norm(shape)
        self.mlp = SwiGLU(shape)

    def forward(self, hidden: Tensor, documents: Documents, rotary: RotaryTables) -> Tensor:
        # casts as in the other families, so that the sums stay in float32 under autocast
        normed = recomputed(self.input_layernorm, hidden)
        hidden = hidden + self.self_attn(normed, documents, rotary).to(hidden.dtype)
        return hidden + self.mlp(recomputed(self.post_attention_layernorm, hidden)).to(hidden.dtype)


class Attention(nn.Module):
    """Attention to the document's tokens up to the query's own."""

    def __init__(self, shape: Shape, implementation: str):
        super().__init__()
        self.implementation = implementation
        self.head_dim = shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, shape.hidden_size, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, shape.key_value_size, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, shape.key_value_size, bias=False)
        self.o_proj = nn.Linear(shape.hidden_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor, documents: Documents, rotary: RotaryTables) -> Tensor:
        # q and out: [tokens, heads, head_dim]; k, v: [tokens, key/value heads, head_dim]
        q, k, v = (project(x).unflatten(1, (-1, self.head_dim)) for project in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        out = attention(q, k, v, documents, None, self.implementation, causal=True)
        return self.o_proj(out.flatten(1))


class SwiGLU(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return recomputed(self._down, self.gate_proj(x), self.up_proj(x))

    def _down(self, gate: Tensor, up: Tensor) -> Tensor:
        return self.down_proj(F.silu(gate) * up)


# The backward pass recomputes the elementwise operations before a product, but not the product. So a layer keeps 12
# times its input for the backward pass, instead of 19 times.
recomputed = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


def norm(shape: Shape) -> nn.RMSNorm:
    return nn.RMSNorm(shape.hidden_size, eps=shape.norm_eps)
