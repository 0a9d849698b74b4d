"""A new classifier on a pretrained RoFormerV2: the first token's hidden state, or every token's, and a linear map.

As in the published fine-tuning code (roformer-v2, clue/), there is no hidden layer in between and no dropout.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rotary_foundry.models.roformer_v2.initialisation import CUTOFF


def with_classifier(state: Mapping[str, Tensor], labels: int, seed: int) -> dict[str, Tensor]:
    """Return the network's parameters with a classifier of so many labels; the output has no parameters to drop."""
    hidden = state["embeddings.token_type_embeddings.weight"].shape[1]
    weight, std = torch.empty(labels, hidden), hidden**-0.5
    generator = torch.Generator().manual_seed(seed)
    nn.init.trunc_normal_(weight, std=std, a=-CUTOFF * std, b=CUTOFF * std, generator=generator)
    return {name: state[name] for name in state} | {
        "classifier.weight": weight,
        "classifier.bias": torch.zeros(labels),
    }
