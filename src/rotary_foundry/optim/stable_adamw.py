"""StableAdamW: AdamW that lowers a tensor's learning rate if its gradient is large compared with its history.

The rate is divided by max(1, RMS(g / sqrt(max(v, eps²)))): Adafactor's update clipping instead of gradient clipping
(arXiv 2304.13013). It is computed over the *whole* parameter. optimi's implementation is the reference on whole
tensors, but it does not work under FSDP2: its foreach path raises on DTensors, and its plain path needs a mean over
ranks, which gloo does not have and which is wrong for uneven shards.

Weight decay is fully decoupled, as optimi's `decouple_lr=True`: a step multiplies a weight by
1 - (lr / max_lr) · weight_decay, where lr is the clipped rate.

How a step works:

- Foreach operations work on the local shards. One buffer of the parameters' size first holds the ratios above and then
  the update, because a step on a CPU mainly waits for fresh memory.
- A whole tensor's sum of squares is the sum of its shards' sums, so one all-reduce (SUM) per step serves all groups.
- The host never waits for the divisors: they stay on the device and scale the update there. So on a GPU the last
  operation is one kernel per parameter.
- The norms of `StepMetrics` are taken from the same buffers, and are further rows of that all-reduce.
"""

import math
from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor

from rotary_foundry.compat.torch import (
    foreach_add_,
    foreach_addcmul_,
    foreach_copy_,
    foreach_div_,
    foreach_lerp_,
    foreach_maximum,
    foreach_mul_,
    foreach_norm,
    foreach_reciprocal,
    foreach_reciprocal_,
    foreach_rsqrt_,
    foreach_sqrt_,
)
from rotary_foundry.optim import sharded_sums
from rotary_foundry.optim.sharded_optimizer import ShardedOptimizer, squares_of
from rotary_foundry.optim.sharded_sums import local_tensors
from rotary_foundry.optim.step_metrics import StepMetrics


class StableAdamW(ShardedOptimizer):
    """StableAdamW over whole or FSDP2-sharded parameters.

    With `record_metrics` set, `metrics` holds the last step's `StepMetrics`; unset, they cost nothing.

    Args:
        params: parameters or parameter groups; a group may set its own `weight_decay`.
        lr: learning rate; may change at every step.
        betas: decay rates of the two moments, debiased at every step.
        eps: added to the root of the second moment.
        weight_decay: fully decoupled; relative to `lr / max_lr`.
        max_lr: the highest learning rate of the schedule; None: `lr`.

    Raises:
        ValueError: a setting is out of range; from `step`: parameters are sharded over more than one dimension.
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
        max_lr = lr if max_lr is None else max_lr
        super().__init__(params, lr, betas, eps, weight_decay, ("max_lr", max_lr, max_lr > 0))

    def _update(self, stepping: list[tuple[dict, list[Tensor]]], params: list[Tensor]) -> None:
        """Update the parameters."""
        updates, sums = zip(*(self._advance(group, group_params) for group, group_params in stepping), strict=True)
        squares = torch.cat(sums, dim=1)  # [kinds, params]
        sharded_sums.sum_over_shards(squares, params)
        clipping = squares[0].sqrt().clamp_(min=1.0)  # [params]
        scales = foreach_reciprocal(clipping.unbind())
        foreach_mul_(scales, [-group["lr"] for group, group_params in stepping for _ in group_params])
        foreach_addcmul_(local_tensors(params), list(chain(*updates)), scales)
        if self.record_metrics:
            grad, param, moment, update = squares[1:].sqrt()
            l2_norms = {"grad": grad, "param": param, "moment": moment, "update": update * torch.stack(scales).abs()}
            self.metrics = StepMetrics(params, l2_norms, clipping)

    def _advance(self, group: dict, params: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Update the moments.

        Returns the updates, not yet multiplied by the clipped learning rate, and the shards' sums [kinds, params]. The
        sums are of the ratios' squares, divided by the parameter's size, and of the squares that `StepMetrics` needs.
        """
        states = [self._state(param) for param in params]
        foreach_add_([state["step"] for state in states], 1)
        steps = [state["step"].item() for state in states]
        beta1s, beta2s = ([_debiased(beta, step) for step in steps] for beta in group["betas"])
        values = local_tensors(params)
        grads = local_tensors(param.grad for param in params)
        exp_avgs = local_tensors(state["exp_avg"] for state in states)
        exp_avg_sqs = local_tensors(state["exp_avg_sq"] for state in states)

        foreach_lerp_(exp_avgs, grads, [1 - beta for beta in beta1s])
        foreach_mul_(exp_avg_sqs, beta2s)
        foreach_addcmul_(exp_avg_sqs, grads, grads, [1 - beta for beta in beta2s])

        ratios = foreach_maximum(exp_avg_sqs, group["eps"] ** 2)
        foreach_rsqrt_(ratios)
        foreach_mul_(ratios, grads)
        norms = [foreach_norm(ratios)]
        foreach_div_(norms[0], [math.sqrt(param.numel()) for param in params])

        updates = ratios  # in the same memory
        foreach_copy_(updates, exp_avg_sqs)
        foreach_sqrt_(updates)
        foreach_add_(updates, group["eps"])
        foreach_reciprocal_(updates)
        foreach_mul_(updates, exp_avgs)
        if group["weight_decay"]:
            foreach_add_(updates, values, alpha=group["weight_decay"] / group["max_lr"])
        if self.record_metrics:
            norms += [foreach_norm(tensors) for tensors in (grads, values, exp_avgs, updates)]
        return updates, squares_of(norms)


def _debiased(beta: float, step: float) -> float:
    """Return the decay rate that makes a running mean of the first `step` values unbiased; 0 at the first step."""
    return beta * (1 - beta ** (step - 1)) / (1 - beta**step)
