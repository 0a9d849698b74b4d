"""A new classifier on a pretrained ModernBERT, as transformers' classes have it.

It is a dense layer, a norm and a linear map to the labels. The first two are pretrained: they are the masked language
model's prediction head, and bear the same names. The linear map is new, drawn here as transformers would draw it; the
decoder's bias has no place there and is left out.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from rotary_foundry.models.truncated_normal import truncated_normal


def with_classifier(state: Mapping[str, Tensor], labels: int, seed: int) -> dict[str, Tensor]:
    """Return the network's parameters with a classifier of so many labels instead of the decoder's."""
    kept = {name: state[name] for name in state if not name.startswith("decoder.")}
    hidden = kept["head.norm.weight"].shape[0]
    weight = truncated_normal((labels, hidden), hidden**-0.5, torch.Generator().manual_seed(seed))
    return kept | {"classifier.weight": weight, "classifier.bias": torch.zeros(labels)}
