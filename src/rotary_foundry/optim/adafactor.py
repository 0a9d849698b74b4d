"""AdaFactor (arXiv 1804.04235) as in bert4keras: unfactored, with momentum and relative steps.

Neither torch's nor transformers' class can do this. torch's always factors matrices and has no momentum. transformers'
factors too, and averages steps that are already multiplied by the parameter's size. bert4keras, whose class the
published code uses, averages the clipped updates and then multiplies by the parameter's current size.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

DECAY = 0.8  # the second moment's β is 1 - step^-DECAY
TINY = 1e-30  # added to squares
SMALLEST = 1e-3  # the least size of a parameter, so that zeros can change
CLIP = 1.0  # the largest root mean square of an update


class AdaFactor(Optimizer):
    """AdaFactor with whole second moments.

    Args:
        params: parameters or groups of them.
        lr: a step's root mean square as a fraction of the parameter's.
        beta1: decay rate of the first moment.
        weight_decay: decoupled, multiplied by lr.
    """

    def __init__(self, params: Iterable, lr: float = 5e-4, beta1: float = 0.9, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "beta1": beta1, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._step(param, group)
        return loss

    def _step(self, param: Tensor, group: dict) -> None:
        state = self.state[param]
        if not state:
            state |= {"step": 0, "first": torch.zeros_like(param), "second": torch.zeros_like(param)}
        state["step"] += 1
        state["second"].lerp_(param.grad.square() + TINY, state["step"] ** -DECAY)
        update = param.grad / (state["second"] + TINY).sqrt()
        update /= (_size(update) / CLIP).clamp(min=1.0)
        state["first"].lerp_(update, 1 - group["beta1"])
        size = _size(param).clamp(min=SMALLEST)
        param.mul_(1 - group["lr"] * group["weight_decay"])
        param.sub_(state["first"] * (group["lr"] * size))


def _size(tensor: Tensor) -> Tensor:
    return tensor.square().mean().sqrt()
