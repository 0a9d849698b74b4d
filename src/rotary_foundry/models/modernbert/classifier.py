"""A classifier on a pretrained ModernBERT, as in transformers' classes: a dense layer, a norm and a linear map.

In a new classifier the first two are pretrained: they are the masked language model's prediction head, with the same
names. The linear map is new, drawn here as transformers would draw it. The classifier has no part for the decoder's
bias, so that is left out.

A trained head of a multi-task stage is only a linear map. For it, dense layer and norm are made an identity: the dense
layer divides by the gains of the encoder's final norm, and the norm has the same gains and multiplies by them again.
Between them, values already have mean 0 and variance 1. Only `norm_eps` is added to the variance twice, which changes
hidden states by at most about `norm_eps` / 2 of their size.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from rotary_foundry.models.truncated_normal import truncated_normal
from rotary_foundry.utils.errors import DataError


def with_classifier(state: Mapping[str, Tensor], labels: int, seed: int) -> dict[str, Tensor]:
    """Return the network's parameters with a classifier for `labels` labels instead of the decoder."""
    kept = {name: state[name] for name in state if not name.startswith("decoder.")}
    hidden = kept["head.norm.weight"].shape[0]
    weight = truncated_normal((labels, hidden), hidden**-0.5, torch.Generator().manual_seed(seed))
    return kept | {"classifier.weight": weight, "classifier.bias": torch.zeros(labels)}


def with_linear_classifier(state: Mapping[str, Tensor], weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """Return the network's parameters with a trained linear map of hidden states instead of the decoder.

    The classes of transformers compute it with `classifier_activation: linear`.

    Args:
        state: the network's parameters.
        weight: [labels, hidden].
        bias: [labels].

    Raises:
        DataError: a gain of the final norm is 0.
    """
    gains = state["model.final_norm.weight"]
    if not gains.all():
        raise DataError(
            "model.final_norm.weight: a gain is 0, so no classifier of transformers computes the task's head; export "
            "without it, or from another checkpoint"
        )
    replaced = {"head.dense.weight": torch.diag(1 / gains), "head.norm.weight": gains}
    kept = {name: state[name] for name in state if not name.startswith(("decoder.", "head."))}
    return kept | replaced | {"classifier.weight": weight, "classifier.bias": bias}
