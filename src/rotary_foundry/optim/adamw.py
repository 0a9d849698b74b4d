"""AdamW: torch's fused AdamW with gradient clipping by the norm over all parameters, which FSDP2 may have sharded.

torch's own kernel updates the local shards. Everything else in this module computes norms:

- Clipping does what `torch.nn.utils.clip_grad_norm_` does for whole tensors. A whole tensor's sum of squares is the sum
  of its shards' sums, so one all-reduce (SUM) over the sharded mesh dimension gives the norm. torch's own function,
  like its fused optimizer, refuses a mixture of whole and sharded parameters.
- It clips inside `step`, between the closure and the update. Composer runs the forward and backward passes in the
  closure, so an algorithm on AFTER_TRAIN_BATCH would do as well, but `StepMetrics` needs the norm before clipping.
- With `record_metrics`, each step copies the parameters and subtracts the copy from the new ones, because the kernel
  does not return its update. The norms need one more all-reduce.

Weight decay is torch's: a step multiplies a weight by 1 - lr · weight_decay.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from rotary_foundry.compat.torch import foreach_mul_, foreach_norm, foreach_sub_
from rotary_foundry.optim import sharded_sums
from rotary_foundry.optim.sharded_optimizer import ShardedOptimizer, squares_of
from rotary_foundry.optim.sharded_sums import local_tensors
from rotary_foundry.optim.step_metrics import StepMetrics

TINY = 1e-6  # as in torch.nn.utils.clip_grad_norm_


class AdamW(ShardedOptimizer):
    """AdamW over whole or FSDP2-sharded parameters.

    With `record_metrics` set, `metrics` holds the last step's `StepMetrics`.

    Args:
        params: parameters or parameter groups; a group may set its own `weight_decay`.
        lr: learning rate; may change at every step.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        weight_decay: multiplied by `lr`.
        max_grad_norm: gradients are scaled down, in place, to this norm over all parameters; None: never.

    Raises:
        ValueError: a setting is out of range; from `step`: parameters are sharded over more than one dimension.
    """

    step_on_device = True

    def __init__(
        self,
        params: Iterable,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        max_grad_norm: float | None = None,
    ):
        valid = max_grad_norm is None or max_grad_norm > 0
        super().__init__(params, lr, betas, eps, weight_decay, ("max_grad_norm", max_grad_norm, valid))

    def _update(self, stepping: list[tuple[dict, list[Tensor]]], params: list[Tensor]) -> None:
        """Clip the gradients, and update the parameters."""
        grads, values = local_tensors(param.grad for param in params), local_tensors(params)
        max_grad_norm = self.param_groups[0]["max_grad_norm"]
        before, norms, clipping = [], [], torch.ones((), device=values[0].device)
        if self.record_metrics:
            before = [value.clone() for value in values]
            norms = [foreach_norm(tensors) for tensors in (grads, values)]
        if max_grad_norm is not None:
            squares = squares_of(norms[:1] or [foreach_norm(grads)])
            sharded_sums.sum_over_shards(squares, params)
            kept = (max_grad_norm / (squares.sum().sqrt() + TINY)).clamp(max=1.0)
            foreach_mul_(grads, kept)
            clipping = kept.reciprocal()
        for group, group_params in stepping:
            self._run_kernel(group, group_params)
        if self.record_metrics:
            foreach_sub_(before, values)
            moments = local_tensors(self.state[param]["exp_avg"] for param in params)
            squares = squares_of([*norms, foreach_norm(moments), foreach_norm(before)])
            sharded_sums.sum_over_shards(squares, params)
            l2_norms = dict(zip(("grad", "param", "moment", "update"), squares.sqrt(), strict=True))
            self.metrics = StepMetrics(params, l2_norms, clipping.expand(len(params)))

    def _run_kernel(self, group: dict, params: list[Tensor]) -> None:
        states = [self._state(param) for param in params]
        beta1, beta2 = group["betas"]
        adamw(
            local_tensors(params),
            local_tensors(param.grad for param in params),
            local_tensors(state["exp_avg"] for state in states),
            local_tensors(state["exp_avg_sq"] for state in states),
            [],  # amsgrad's state
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
