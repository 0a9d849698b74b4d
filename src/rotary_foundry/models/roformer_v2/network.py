"""RoFormerV2 on unpadded tokens: the encoder, and the output that predicts masked tokens.

- Post-norm, as in bert4keras's class RoFormerV2: x ← norm(x + α·F(x)) for attention and for the feed-forward part. A
  norm divides by the root mean square and has no gain. Nothing has a bias. The output is the product with the word
  embeddings.
- α (`residual_scale`) is 1 in the finished model. In training it may rise from 0 (kexue.fm/archives/8998). At 0 the
  encoder's output is the normed embedding. It is passed to a layer as a tensor, because a compiled layer would be
  recompiled for each new number.
- Queries and keys are rotated by halves, as in layers/rotary.py. Published weights have pairs side by side; their rows
  are reordered when they are read and written (tensor_names.py). This does not change the scores.
- Dropout acts where bert4keras has it: on the embeddings before their norm, on both sub-layers, and before the output.
  Attention weights have no dropout, because unpadded attention kernels do not support it; bert4keras has 0.1 there.
- All layers work on one flat sequence of tokens, and shared values are passed to a layer as arguments, so FSDP can
  shard the model layer by layer. With labels, the loss is computed inside `forward`, where FSDP holds the whole
  embedding.
"""

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rotary_foundry.models.layers.attention import attention
from rotary_foundry.models.layers.autocast import compute_dtype
from rotary_foundry.models.layers.cross_entropy import TokenLoss, linear_cross_entropy
from rotary_foundry.models.layers.documents import Documents, check_labels, check_token_types, checked_documents
from rotary_foundry.models.layers.network_with_knobs import NetworkWithKnobs
from rotary_foundry.models.layers.rotary import RotaryTables, rotary_tables, rotate
from rotary_foundry.models.roformer_v2.shape import KNOBS, Shape
from rotary_foundry.objectives.objective import IGNORE_INDEX


class RoFormerV2(NetworkWithKnobs):
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
        self.embeddings = Embeddings(shape)
        self.layers = nn.ModuleList(Layer(shape, attn_implementation) for _ in range(shape.num_hidden_layers))
        self.out_drop = nn.Dropout()
        self.set_knobs(knobs)

    @property
    def blocks(self) -> Iterable[nn.Module]:
        return self.layers

    def set_knob(self, name: str, value: float) -> None:
        super().set_knob(name, value)
        if name == "hidden_dropout":
            for module in self.modules():
                if isinstance(module, nn.Dropout):
                    module.p = value

    def forward(
        self,
        input_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int | None = None,
        labels: Tensor | None = None,
        predicted: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor | TokenLoss:
        """Compute logits for every token, or, with labels, the loss.

        Args:
            input_ids, cu_seqlens, max_seqlen, token_type_ids: as for `hidden_states`.
            labels: [tokens] int64, IGNORE_INDEX where nothing is to be predicted.
            predicted: [labels] int64, the positions of all other labels. If None they are found; this waits for a GPU.

        Returns:
            logits [tokens, vocabulary], or a TokenLoss

        Raises:
            DataError: as for `hidden_states`, or the labels do not fit.
        """
        if labels is not None:
            check_labels(labels, input_ids, self.shape.vocab_size)
        hidden = self.hidden_states(input_ids, cu_seqlens, max_seqlen, token_type_ids)
        if labels is None:
            return self.unembed(hidden)
        if predicted is None:
            predicted = (labels != IGNORE_INDEX).nonzero(as_tuple=True)[0]
        hidden = self.out_drop(hidden.index_select(0, predicted))
        return linear_cross_entropy(hidden, self._embedding, None, labels[predicted])

    def hidden_states(
        self,
        input_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Encode documents in one flat sequence.

        Args:
            input_ids: [tokens] int64.
            cu_seqlens: [documents + 1] int32, the index of each document's first token, then the number of tokens.
            max_seqlen: at least the tokens of the longest document. If None it is computed, which waits for a GPU.
            token_type_ids: [tokens] int64, 0 or 1; None for zeros, as in pretraining and in the published fine-tuning.

        Returns:
            hidden states [tokens, hidden]

        Raises:
            DataError: the arguments do not fit each other or the vocabulary; values are checked only on the CPU.
        """
        documents = checked_documents(input_ids, cu_seqlens, max_seqlen, self.shape.vocab_size)
        if token_type_ids is not None:
            check_token_types(token_type_ids, input_ids, self.shape.token_types)
        hidden = self.embeddings(input_ids, token_type_ids)  # [tokens, hidden]
        theta = self.knobs["rope_theta"]
        rotary = rotary_tables(documents, self.shape.head_dim, theta, compute_dtype(hidden))
        scale = torch.full((), self.knobs["residual_scale"], dtype=hidden.dtype, device=hidden.device)
        for layer in self.layers:
            hidden = layer(hidden, documents, rotary, scale)
        return hidden

    def unembed(self, hidden: Tensor) -> Tensor:
        return F.linear(self.out_drop(hidden), self._embedding)

    @property
    def _embedding(self) -> Tensor:
        return self.embeddings.word_embeddings.weight


class Embeddings(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.word_embeddings = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.token_type_embeddings = nn.Embedding(shape.token_types, shape.hidden_size)
        self.drop = nn.Dropout()  # its probability is a knob, as for all dropouts here
        self.norm = norm(shape)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        types = self.token_type_embeddings
        of_type = types.weight[0] if token_type_ids is None else types(token_type_ids)
        return self.norm(self.drop(self.word_embeddings(input_ids) + of_type))


class Layer(nn.Module):
    def __init__(self, shape: Shape, attn_implementation: str):
        super().__init__()
        self.attn = Attention(shape, attn_implementation)
        self.mlp = FeedForward(shape)
        self.norm = norm(shape)

    def forward(self, hidden: Tensor, documents: Documents, rotary: RotaryTables, scale: Tensor) -> Tensor:
        # scale: [], the residual_scale; casts as in the other families, so that the sums stay in float32 under autocast
        hidden = self.norm(hidden + scale * self.attn(hidden, documents, rotary).to(hidden.dtype))
        return self.norm(hidden + scale * self.mlp(hidden).to(hidden.dtype))


class Attention(nn.Module):
    """Attention to the whole document."""

    def __init__(self, shape: Shape, implementation: str):
        super().__init__()
        self.implementation = implementation
        self.heads = shape.num_attention_heads
        self.head_dim = shape.head_dim
        self.Wqkv = nn.Linear(shape.hidden_size, 3 * shape.hidden_size, bias=False)
        self.Wo = nn.Linear(shape.hidden_size, shape.hidden_size, bias=False)
        self.out_drop = nn.Dropout()

    def forward(self, x: Tensor, documents: Documents, rotary: RotaryTables) -> Tensor:
        qkv = self.Wqkv(x).unflatten(1, (3 * self.heads, self.head_dim))
        qk, v = qkv.split((2 * self.heads, self.heads), dim=1)  # queries and keys are rotated in one call
        q, k = rotate(qk, *rotary).chunk(2, dim=1)
        # q, k, v and out: [tokens, heads, head_dim]
        out = attention(q, k, v, documents, None, self.implementation)
        return self.out_drop(self.Wo(out.flatten(1)))


class FeedForward(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.Wi = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.Wo = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)
        self.out_drop = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        return self.out_drop(self.Wo(F.relu(self.Wi(x))))


def norm(shape: Shape) -> nn.RMSNorm:
    """Return an RMS norm without a gain."""
    return nn.RMSNorm(shape.hidden_size, eps=shape.norm_eps, elementwise_affine=False)
