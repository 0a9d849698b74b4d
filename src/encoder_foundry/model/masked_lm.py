"""The network that is trained: the encoder, and the head that names the token behind a mask.

- The decoder is tied to the embedding and holds its own bias only, so that no state dict has a tensor twice. Parameter
  names are those that transformers' ModernBertForMaskedLM saves, exactly; interop/huggingface.py renames nothing.
- Logits can be asked for at some positions only. In training those are the masked ones, 30 % of all: the vocabulary
  product and its softmax cost more than a layer.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoder_foundry.model.encoder import Encoder, norm
from encoder_foundry.recipe.schema import ModelConfig


class MaskedLM(nn.Module):
    """Token ids to logits over the vocabulary. Set `model.rope_theta` to change the theta of the global layers."""

    def __init__(self, config: ModelConfig, rope_theta: float):
        super().__init__()
        self.config = config
        self.model = Encoder(config, rope_theta)
        self.head = Head(config)
        self.decoder = Decoder(config)

    def forward(
        self, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int | None = None, at: Tensor | None = None
    ) -> Tensor:
        """Logits for every token, or for those that `at` names.

        Args:
            input_ids, cu_seqlens, max_seqlen: as the Encoder takes them.
            at: [masked] int64, indices of tokens.

        Returns:
            logits [tokens, vocabulary], or [masked, vocabulary]
        """
        hidden = self.model(input_ids, cu_seqlens, max_seqlen)
        if at is not None:
            hidden = hidden.index_select(0, at)
        return self.decoder(self.head(hidden), self.model.embeddings.tok_embeddings.weight)


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

    def forward(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        return F.linear(hidden, embedding, self.bias)
