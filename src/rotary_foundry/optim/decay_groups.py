"""Choose the parameters with weight decay."""

from torch import nn


def decay_groups(model: nn.Module, weight_decay: float, decay_all: bool = False) -> list[dict]:
    """Make parameter groups: weight decay for matrices, none for norms and biases (anything with one dimension).

    With `decay_all`, every parameter decays. A group without parameters is left out, because torch does not restore the
    settings of an empty group from a checkpoint.
    """
    params = [param for param in model.parameters() if param.requires_grad]
    dimensions = 0 if decay_all else 2
    groups = [
        {"params": [p for p in params if p.ndim >= dimensions], "decays": True, "weight_decay": weight_decay},
        {"params": [p for p in params if p.ndim < dimensions], "decays": False, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
