"""A new classifier on a pretrained RoFormerV2: the first token's hidden state, or every token's, and a linear map.

As in the published fine-tuning code (roformer-v2, clue/), there is no hidden layer in between and no dropout.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from rotary_foundry.models.truncated_normal import truncated_normal


def with_classifier(state: Mapping[str, Tensor], labels: int, seed: int) -> dict[str, Tensor]:
    """Return the network's parameters with a classifier for `labels` labels; the output has no parameters to drop."""
    hidden = state["embeddings.token_type_embeddings.weight"].shape[1]
    weight = truncated_normal((labels, hidden), hidden**-0.5, torch.Generator().manual_seed(seed))
    return {name: state[name] for name in state} | {
        "classifier.weight": weight,
        "classifier.bias": torch.zeros(labels),
    }
