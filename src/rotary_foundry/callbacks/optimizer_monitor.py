"""OptimizerMonitor: norms of gradients, weights, first moments and updates, and how hard the optimizer clipped.

Composer's own monitor fails under FSDP2 (composer#3920: it reduces DTensors), and it computes each update a second time
after the step. Here the optimizer computes the norms during its step (`StepMetrics`). For StableAdamW this takes 7 ms
of the 1.9 s of CPU time of nano's smallest update (4 M parameters, 2,048 tokens), 0.4 %, and a smaller share of any
larger one. So every update is logged. benchmarks/README.md has the cost of all monitors together.

The keys are Composer's (`l2_norm/grad/global`, `l2_norm/update/global`, …) under `optim/`, so that W&B, which groups
charts by a key's first word, shows them in one section with the clipping. Two numbers differ from Composer's: `param`
is the norm before the step, and `update` includes weight decay with its sign.

Uses BATCH_START and BATCH_END.
"""

from composer.core import State
from composer.loggers import Logger

from rotary_foundry.callbacks.monitor import Monitor, Numbers


class OptimizerMonitor(Monitor):
    """Logs the norms and clipping of each step, and adds `grad_norm` and `update_norm` to the update's record.

    `optim/l2_norm/{grad,param,moment,update}/global` are over all parameters. `optim/clipping/max` is the largest
    divisor of a learning rate (StableAdamW) or of the gradients (AdamW); it is 1 if nothing was clipped.
    """

    def batch_start(self, state: State, logger: Logger) -> None:
        state.optimizers[0].record_metrics = True

    def measured(self, state: State, ranks: list[Numbers]) -> dict[str, float | None]:
        totals = state.optimizers[0].metrics.totals
        return {f"{kind}_norm": totals[kind] for kind in ("grad", "update")}

    def batch_end(self, state: State, logger: Logger) -> None:
        norms = state.optimizers[0].metrics.totals.copy()
        clipping = norms.pop("clipping")
        keys = {f"optim/l2_norm/{kind}/global": norm for kind, norm in norms.items()}
        logger.log_metrics(keys | {"optim/clipping/max": clipping})
