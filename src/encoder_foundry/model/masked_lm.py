import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoder_foundry.model.encoder import Encoder
from encoder_foundry.recipe.schema import ModelConfig


class MaskedLM(nn.Module):
    def __init__(self, config: ModelConfig, rope_theta: float):
        super().__init__()
        self.config = config
        self.model = Encoder(config, rope_theta)
        self.head = Head(config)
        self.decoder = Decoder(config)

    def forward(self, input_ids, cu_seqlens, max_seqlen=None, at=None):
        hidden = self.model(input_ids, cu_seqlens, max_seqlen)
        if at is not None:
            hidden = hidden.index_select(0, at)
        return self.decoder(self.head(hidden), self.model.embeddings.tok_embeddings.weight)


class Head(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=False)

    def forward(self, hidden):
        return self.norm(F.gelu(self.dense(hidden)))


class Decoder(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden, weight):
        return F.linear(hidden, weight, self.bias)
