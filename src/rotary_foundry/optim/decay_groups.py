"""Choose the parameters with weight decay."""

from torch import nn


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Make parameter groups: weight decay for matrices, none for norms and biases (anything with one dimension)."""
    params = [param for param in model.parameters() if param.requires_grad]
    return [
        {"params": [param for param in params if param.ndim > 1], "decays": True, "weight_decay": weight_decay},
        {"params": [param for param in params if param.ndim <= 1], "decays": False, "weight_decay": 0.0},
    ]
