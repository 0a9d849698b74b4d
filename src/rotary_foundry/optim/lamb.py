"""LAMB: Adam with steps whose norm is the learning rate times the tensor's norm (arXiv 1904.00962).

u = m / (sqrt(v) + eps) + weight_decay · w, and a step adds -lr · (‖w‖ / ‖u‖) · u, with the norms of the *whole* tensor.
This is the form of bert4keras (`optimizers.py`). It contains four decisions:

- The moments are not debiased.
- Weight decay is part of u, so the ratio scales it too. Every tensor decays, also those of one dimension.
- The ratio is not bounded. It is 1 where a norm is 0, so that a tensor of zeros can change.
- Gradients are not clipped. The ratio cancels the scale of u, so a large gradient cannot lengthen a step.

A tensor whose gradients have all been 0 shrinks by the share lr at each step, unless weight_decay is 0: the ratio also
cancels the factor weight_decay.

As in StableAdamW, the operations are on local shards, one all-reduce (SUM) sums all norms, and the host never waits for
a ratio.
"""

from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor

from rotary_foundry.compat.torch import (
    foreach_add_,
    foreach_addcmul_,
    foreach_lerp_,
    foreach_mul_,
    foreach_norm,
    foreach_reciprocal_,
    foreach_sqrt,
)
from rotary_foundry.optim import sharded_sums
from rotary_foundry.optim.sharded_optimizer import ShardedOptimizer, squares_of
from rotary_foundry.optim.sharded_sums import local_tensors
from rotary_foundry.optim.step_metrics import StepMetrics


class LAMB(ShardedOptimizer):
    """LAMB over whole or FSDP2-sharded parameters.

    With `record_metrics` set, `metrics` holds the last step's `StepMetrics`.

    Args:
        params: parameters or parameter groups; a group may set its own `weight_decay`.
        lr: learning rate: a step's norm as a share of the tensor's norm; may change at every step.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        weight_decay: the parameter's factor in the update, before the ratio.

    Raises:
        ValueError: a setting is out of range; from `step`: parameters are sharded over more than one dimension.
    """

    def __init__(self, params: Iterable, lr: float, betas: tuple[float, float], eps: float, weight_decay: float):
        super().__init__(params, lr, betas, eps, weight_decay)

    def _update(self, stepping: list[tuple[dict, list[Tensor]]], params: list[Tensor]) -> None:
        """Update the parameters."""
        updates = list(chain(*(self._advance(group, group_params) for group, group_params in stepping)))
        values = local_tensors(params)
        norms = [foreach_norm(tensors) for tensors in (values, updates)]
        if self.record_metrics:
            moments = local_tensors(self.state[param]["exp_avg"] for param in params)
            norms += [foreach_norm(tensors) for tensors in (local_tensors(param.grad for param in params), moments)]
        squares = squares_of(norms)
        sharded_sums.sum_over_shards(squares, params)
        param, update, *recorded = squares.sqrt()
        ratios = torch.where((param > 0) & (update > 0), param / update, 1.0)
        scales = list(ratios.unbind())
        foreach_mul_(scales, [-group["lr"] for group, group_params in stepping for _ in group_params])
        foreach_addcmul_(values, updates, scales)
        if self.record_metrics:
            grad, moment = recorded
            l2_norms = {"grad": grad, "param": param, "moment": moment, "update": update * torch.stack(scales).abs()}
            self.metrics = StepMetrics(params, l2_norms, torch.ones_like(ratios))

    def _advance(self, group: dict, params: list[Tensor]) -> list[Tensor]:
        """Update the moments; return the updates, not yet multiplied by the ratio and the learning rate."""
        states = [self._state(param) for param in params]
        foreach_add_([state["step"] for state in states], 1)
        grads = local_tensors(param.grad for param in params)
        exp_avgs = local_tensors(state["exp_avg"] for state in states)
        exp_avg_sqs = local_tensors(state["exp_avg_sq"] for state in states)
        beta1, beta2 = group["betas"]

        foreach_lerp_(exp_avgs, grads, 1 - beta1)
        foreach_mul_(exp_avg_sqs, beta2)
        foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)

        updates = foreach_sqrt(exp_avg_sqs)
        foreach_add_(updates, group["eps"])
        foreach_reciprocal_(updates)
        foreach_mul_(updates, exp_avgs)
        if group["weight_decay"]:
            foreach_add_(updates, local_tensors(params), alpha=group["weight_decay"])
        return updates
