"""The network that is trained: the encoder, and the head that names the token behind a mask.

- The decoder is tied to the embedding and holds its own bias only, so that no state dict has a tensor twice. Parameter
  names are those that transformers' ModernBertForMaskedLM saves, exactly; interop/huggingface.py renames nothing.
- With labels, the loss is computed in here: at the labelled positions only, 15 or 30 % of all, and holding the logits
  of a chunk of them at a time (cross_entropy.py). It has to be within `forward`: only there FSDP has the tied embedding
  whole.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rotary_foundry.models.layers.cross_entropy import MaskedLoss, linear_cross_entropy
from rotary_foundry.models.layers.documents import check_labels
from rotary_foundry.models.modernbert.encoder import Encoder, norm
from rotary_foundry.objectives.masked_lm import IGNORE_INDEX
from rotary_foundry.recipe.schema import ModelConfig


class MaskedLM(nn.Module):
    """Token ids to logits over the vocabulary. Set `model.rope_theta` to change the theta of the global layers."""

    def __init__(self, config: ModelConfig, rope_theta: float):
        super().__init__()
        self.config = config
        self.model = Encoder(config, rope_theta)
        self.head = Head(config)
        self.decoder = Decoder(config)

    def forward(
        self, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int | None = None, labels: Tensor | None = None
    ) -> Tensor | MaskedLoss:
        """Logits for every token, or, with labels, the loss.

        Args:
            input_ids, cu_seqlens, max_seqlen: as the Encoder takes them.
            labels: [tokens] int64, IGNORE_INDEX where nothing is to be predicted.

        Returns:
            logits [tokens, vocabulary], or a MaskedLoss

        Raises:
            DataError: as the Encoder, and for labels that do not fit.
        """
        if labels is not None:
            check_labels(labels, input_ids, self.config.vocab_size)
        hidden = self.model(input_ids, cu_seqlens, max_seqlen)
        embedding = self.model.embeddings.tok_embeddings.weight
        if labels is None:
            return F.linear(self.head(hidden), embedding, self.decoder.bias)
        masked = (labels != IGNORE_INDEX).nonzero(as_tuple=True)[0]
        hidden = self.head(hidden.index_select(0, masked))
        return linear_cross_entropy(hidden, embedding, self.decoder.bias, labels[masked])


class Head(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.norm = norm(config)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.norm(F.gelu(self.dense(hidden)))


class Decoder(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
