"""The base of our optimizers: the settings common to all, their state, and the frame of a step.

`step` is defined here and nowhere else: torch wraps the `step` of an optimizer's class to call hooks, so a subclass
that called `super().step()` would call them twice. Subclasses define `_update` instead.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from rotary_foundry.optim.step_metrics import StepMetrics


class ShardedOptimizer(torch.optim.Optimizer, ABC):
    """An optimizer with two moments, over whole or FSDP2-sharded parameters.

    With `record_metrics` set, `metrics` holds the last step's `StepMetrics`.

    Args:
        params: parameters or parameter groups; a group may set its own `weight_decay`.
        lr: learning rate; may change at every step.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        weight_decay: as the subclass defines it.
        own: the subclass's settings: name, value and whether the value is valid.

    Raises:
        ValueError: a setting is out of range; from `step`: parameters are sharded over more than one dimension.
    """

    record_metrics: bool = False
    metrics: StepMetrics | None = None
    step_on_device: bool = False
    """True: the step count is on the parameter's device, where torch's fused kernels read it. False: on the CPU."""

    def __init__(
        self,
        params: Iterable,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        *own: tuple[str, float | None, bool],
    ):
        settings = (
            ("lr", lr, lr >= 0),
            ("betas", tuple(betas), all(0 <= beta < 1 for beta in betas)),
            ("eps", eps, eps > 0),
            ("weight_decay", weight_decay, weight_decay >= 0),
            *own,
        )
        for name, value, valid in settings:
            if not valid:
                raise ValueError(f"Invalid {name}: {value}")
        super().__init__(params, {name: value for name, value, _ in settings})

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> Tensor | None:
        """Update every parameter that has a gradient; return the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        stepping = [(group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups]
        stepping = [(group, params) for group, params in stepping if params]
        if stepping:
            self._update(stepping, [param for _, params in stepping for param in params])
        return loss

    @abstractmethod
    def _update(self, stepping: list[tuple[dict, list[Tensor]]], params: list[Tensor]) -> None:
        """Update `params`, those of the groups in `stepping`, all of which have gradients."""

    def initialise_state(self) -> None:
        """Create every parameter's state now, so that checkpoints also have it for parameters without a gradient."""
        for group in self.param_groups:
            for param in group["params"]:
                self._state(param)

    def _state(self, param: Tensor) -> dict[str, Tensor]:
        state = self.state[param]
        if not state:
            device = param.device if self.step_on_device else "cpu"
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            state["exp_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        return state


def squares_of(norms: list[list[Tensor]]) -> Tensor:
    """Return sums of squares [kinds, params] from the norms of shards."""
    return torch.stack([torch.stack(row) for row in norms]).square_()
