"""OptimizerMonitor: norms of gradients, weights, first moments and updates, and how hard the optimizer clipped.

Composer's own monitor fails under FSDP2 (composer#3920: it reduces DTensors), and it goes over the parameters once more
after the step, making each update a second time. Here the optimizer takes the norms in passing (`StepMetrics`):
StableAdamW in 7 ms of the 1.9 s of CPU time that nano's smallest update takes (4 M parameters, 2,048 tokens), 0.4 %,
and less of any larger one, so every update is logged. benchmarks/README.md has that of all monitors together.

The keys are Composer's (`l2_norm/grad/global`, `l2_norm/update/global`, …) under `optim/`: who knows them finds them,
and W&B, which groups its charts by a key's first word, shows them with the clipping in one section. Two things differ
from Composer's numbers: `param` is before the step, and `update` counts the decay with the sign that it has.

Uses BATCH_START and BATCH_END.
"""

from composer.core import State
from composer.loggers import Logger

from rotary_foundry.callbacks.monitor import Monitor, Numbers


class OptimizerMonitor(Monitor):
    """Logs what the optimizer did, and gives an update's record its `grad_norm` and `update_norm`.

    `optim/l2_norm/{grad,param,moment,update}/global` are over all parameters, `optim/clipping/max` is the largest
    divisor of a learning rate (StableAdamW) or of the gradients (AdamW), 1 where nothing was clipped.
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
