"""StableAdamW: AdamW whose learning rate is divided, tensor by tensor, by how far the gradient outruns its own history.

The divisor is max(1, RMS(g / sqrt(max(v, eps²)))), Adafactor's update clipping in place of gradient clipping
(arXiv 2304.13013), and it is over the *whole* parameter. optimi's implementation is the reference on whole tensors;
it does not serve under FSDP2 (its foreach path raises on DTensors), so this one works on the local shards, with one
all-reduce a step for the sums of squares of all parameters together.

Weight decay is fully decoupled, as optimi's `decouple_lr=True`: a step multiplies a weight by
1 - (lr / max_lr) · weight_decay, lr being the clipped one.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.distributed import all_reduce
from torch.distributed.tensor import DTensor


class StableAdamW(torch.optim.Optimizer):
    """StableAdamW over whole or FSDP2-sharded parameters.

    Args:
        params: parameters or parameter groups; a group may set its own `weight_decay`.
        lr: learning rate; may be set anew at every step.
        betas: decay rates of the two moments, debiased at every step.
        eps: added to the root of the second moment.
        weight_decay: fully decoupled; relative to `lr / max_lr`.
        max_lr: the highest learning rate of the schedule; `lr` if it is not given.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        max_lr: float | None = None,
    ):
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "max_lr": max_lr or lr}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> Tensor | None:
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            if params:
                self._step_group(group, params)
        return loss

    def _step_group(self, group: dict, params: list[Tensor]) -> None:
        states = [self._state(param) for param in params]
        torch._foreach_add_([state["step"] for state in states], 1)
        step = states[0]["step"].item()
        beta1, beta2 = (_debiased(beta, step) for beta in group["betas"])
        values = [_local(param) for param in params]
        grads = [_local(param.grad).to(value.dtype) for param, value in zip(params, values, strict=True)]
        exp_avgs = [_local(state["exp_avg"]) for state in states]
        exp_avg_sqs = [_local(state["exp_avg_sq"]) for state in states]

        torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
        torch._foreach_mul_(exp_avg_sqs, beta2)
        torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)

        clipping = _rms_clipping(params, grads, exp_avg_sqs, group["eps"])
        lrs = [group["lr"] / divisor for divisor in clipping]
        if group["weight_decay"]:
            torch._foreach_mul_(values, [1 - lr / group["max_lr"] * group["weight_decay"] for lr in lrs])
        denominators = torch._foreach_sqrt(exp_avg_sqs)
        torch._foreach_add_(denominators, group["eps"])
        torch._foreach_addcdiv_(values, exp_avgs, denominators, [-lr for lr in lrs])

    def _state(self, param: Tensor) -> dict[str, Tensor]:
        state = self.state[param]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        return state


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Parameter groups with weight decay on matrices and none on norms and biases (anything with one dimension)."""
    params = [param for param in model.parameters() if param.requires_grad]
    return [
        {"params": [param for param in params if param.ndim > 1], "decays": True, "weight_decay": weight_decay},
        {"params": [param for param in params if param.ndim <= 1], "decays": False, "weight_decay": 0.0},
    ]


def _debiased(beta: float, step: float) -> float:
    """The decay rate that makes a running mean of the first `step` values unbiased; 0 at the first."""
    return beta * (1 - beta ** (step - 1)) / (1 - beta**step)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _rms_clipping(params: list[Tensor], grads: list[Tensor], exp_avg_sqs: list[Tensor], eps: float) -> list[float]:
    """max(1, RMS(g / sqrt(max(v, eps²)))) of every whole parameter."""
    scales = torch._foreach_maximum(exp_avg_sqs, eps**2)
    torch._foreach_sqrt_(scales)
    ratios = torch._foreach_div(grads, scales)
    squares = torch.stack(torch._foreach_norm(ratios, 2)).square_()
    if isinstance(params[0], DTensor):
        mesh = params[0].device_mesh
        for dim, placement in enumerate(params[0].placements):
            if placement.is_shard():
                all_reduce(squares, group=mesh.get_group(dim))
    means = squares / torch.tensor([param.numel() for param in params], device=squares.device)
    return means.sqrt_().clamp_(min=1.0).tolist()
