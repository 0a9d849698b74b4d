"""The network that is trained: the encoder, and the head that predicts masked tokens.

- The decoder is tied to the embedding and has only its own bias, so that no state dict has a tensor twice. Parameter
  names are exactly those that transformers' ModernBertForMaskedLM saves.
- With labels, `forward` computes the loss at the labelled positions only, and only the logits of one chunk of them are
  in memory at a time (layers/cross_entropy.py). The loss must be computed inside `forward`, because only there does
  FSDP hold the whole tied embedding.
"""

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rotary_foundry.models.layers.cross_entropy import TokenLoss, linear_cross_entropy
from rotary_foundry.models.layers.documents import check_labels
from rotary_foundry.models.modernbert.encoder import Encoder, norm
from rotary_foundry.models.modernbert.shape import Shape
from rotary_foundry.objectives.objective import IGNORE_INDEX


class ModernBert(nn.Module):
    """Map token ids to logits over the vocabulary, or to a loss.

    Args:
        shape, knobs, attn_implementation: as the Encoder takes them.
    """

    def __init__(self, shape: Shape, knobs: Mapping[str, float], attn_implementation: str = "auto"):
        super().__init__()
        self.shape = shape
        self.model = Encoder(shape, knobs, attn_implementation)
        self.head = Head(shape)
        self.decoder = Decoder(shape)

    @property
    def blocks(self) -> Iterable[nn.Module]:
        return self.model.layers

    @property
    def knobs(self) -> Mapping[str, float]:
        """The value of every knob."""
        return self.model.knobs

    def set_knob(self, name: str, value: float) -> None:
        self.model.set_knob(name, value)

    def forward(
        self,
        input_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int | None = None,
        labels: Tensor | None = None,
        predicted: Tensor | None = None,
    ) -> Tensor | TokenLoss:
        """Compute logits for every token, or, with labels, the loss.

        Args:
            input_ids, cu_seqlens, max_seqlen: as the Encoder takes them.
            labels: [tokens] int64, IGNORE_INDEX where nothing is to be predicted.
            predicted: [labels] int64, the positions of all other labels. If None they are found; this waits for a GPU.

        Returns:
            logits [tokens, vocabulary], or a TokenLoss

        Raises:
            DataError: as for the Encoder, or the labels do not fit.
        """
        if labels is not None:
            check_labels(labels, input_ids, self.shape.vocab_size)
        hidden = self.hidden_states(input_ids, cu_seqlens, max_seqlen)
        if labels is None:
            return self.unembed(hidden)
        if predicted is None:
            predicted = (labels != IGNORE_INDEX).nonzero(as_tuple=True)[0]
        hidden = self.head(hidden.index_select(0, predicted))
        return linear_cross_entropy(hidden, self._embedding, self.decoder.bias, labels[predicted])

    def hidden_states(self, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int | None = None) -> Tensor:
        return self.model(input_ids, cu_seqlens, max_seqlen)

    def unembed(self, hidden: Tensor) -> Tensor:
        return F.linear(self.head(hidden), self._embedding, self.decoder.bias)

    @property
    def _embedding(self) -> Tensor:
        return self.model.embeddings.tok_embeddings.weight


class Head(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.dense = nn.Linear(shape.hidden_size, shape.hidden_size, bias=False)
        self.norm = norm(shape)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.norm(F.gelu(self.dense(hidden)))


class Decoder(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(shape.vocab_size))
