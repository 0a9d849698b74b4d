"""RunRecords: write `metrics.jsonl`, one line an update, and `eval.jsonl`, one line an evaluation.

The records are plain files, so that the summary, the report and a user's notebook read them without a service. A
resumed run appends and continues to count in `batch`, so only the last line for each batch is valid. Uses FIT_START,
BATCH_START, AFTER_LOSS, BATCH_END and EVAL_END.

A mixture sets shares of a stage's rows, but training depends on shares of tokens. So each line has both, by source:
`asked`, and `drawn`, the share of all tokens that the stage has drawn so far. Of many sources the largest have names,
and the others are one (recipe/mixtures.py). A resumed or rolled-back run continues the counts from the valid lines, so
that checkpoints need not hold them.

Each line also has the values of the monitors. The loggers get the numbers of the lines under the names in
`metric_keys.py`. All values are gathered from the ranks in one collective an update.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import chain

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from rotary_foundry.callbacks.monitor import Monitor
from rotary_foundry.data.batches import update_digest
from rotary_foundry.loggers.metric_keys import logged
from rotary_foundry.objectives.objective import Objective
from rotary_foundry.recipe import Plan
from rotary_foundry.recipe.mixtures import grouped
from rotary_foundry.runs.run_folder import RunFolder, append_line


class RunRecords(Callback):
    """Writes a run's records on rank 0.

    Args:
        folder: the run's folder.
        rollbacks: the number of rollbacks that the run has had.
        plan: the current plan.
        monitors: called at every update, in this order.
    """

    def __init__(self, folder: RunFolder, rollbacks: int, plan: Plan, monitors: Sequence[Monitor]):
        self.folder = folder
        self.rollbacks = rollbacks
        self.plan = plan
        self.stages = list(plan.stage_ends)
        self.monitors = monitors

    def fit_start(self, state: State, logger: Logger) -> None:
        self.drawn: dict[str, Counter] = {}  # tokens by source, of each stage
        if dist.get_global_rank() == 0:
            lines = self.folder.records(self.folder.metrics, ("batch", "stage", "loss", "tokens_by_source"))
            lines = [line for line in lines if line["batch"] <= state.timestamp.batch.value]
            for line in lines:
                self.drawn.setdefault(line["stage"], Counter()).update(line["tokens_by_source"] or {})
            for monitor in self.monitors:
                monitor.resume(lines)

    def batch_start(self, state: State, logger: Logger) -> None:
        self.sums = {
            metric.name: state.device.tensor_to_device(torch.zeros((), dtype=torch.int64))
            for metric in state.model.objective.metrics
            if metric.name != "loss"
        }
        self.predicted = 0
        self.batch = state.batch

    def after_loss(self, state: State, logger: Logger) -> None:
        for metric in state.model.objective.metrics:
            if metric.name in self.sums:
                self.sums[metric.name] += getattr(state.outputs, metric.field)
        self.predicted += state.outputs.count("correct")

    def batch_end(self, state: State, logger: Logger) -> None:
        measured = [monitor.local(state) for monitor in self.monitors]
        # the clock has advanced: `token` and `batch` include this update
        rows = [self.batch[key] for key in ("row_digests", "row_sources", "row_tokens")]
        sums = {name: value.item() for name, value in self.sums.items()}
        ranks = dist.all_gather_object([*rows, sums, int(self.predicted), measured])
        *rows, sums, predicted, measured = zip(*ranks, strict=True)
        digests, sources, row_tokens = (list(chain.from_iterable(lists)) for lists in rows)
        tokens_by_source = Counter()
        for source, tokens in zip(sources, row_tokens, strict=True):
            tokens_by_source[source] += tokens
        drawn = self.drawn.setdefault(state.dataloader_label, Counter())
        drawn.update(tokens_by_source)
        asked = _shares(state.dataloader.dataset.draw.mixture or state.dataloader.dataset.rows_by_source)
        mixture = self.plan.segment_at(state.previous_timestamp.token.value).mixture
        optimizer = state.optimizers[0]
        record = {
            "batch": state.timestamp.batch.value,
            "token": state.timestamp.token.value,
            "rollbacks": self.rollbacks,
            "stage": state.dataloader_label,
            "loss": state.total_loss_dict["loss/train/total"],
            **{name: sum(rank[name] for rank in sums) / max(1, sum(predicted)) for name in sums[0]},
            "lr": optimizer.param_groups[0]["lr"],
            "weight_decay": max(group["weight_decay"] for group in optimizer.param_groups),
            **{key: optimizer.param_groups[0][key] for key in ("betas", "max_grad_norm") if key in optimizer.defaults},
            "rows": len(digests),
            "row_length": self.batch["row_length"],
            **self.plan.at(state.previous_timestamp.token.value).knobs,
            **state.model.network.knobs,
            "mixture": mixture and grouped(mixture),
            "asked": grouped(asked),
            "drawn": grouped(_shares(dict.fromkeys(asked, 0) | drawn), asked),
            "rows_by_source": dict(sorted(Counter(sources).items())),
            "tokens_by_source": dict(sorted(tokens_by_source.items())),
            "real_tokens": sum(row_tokens),
            "rows_digest": update_digest(digests),
        }
        for monitor, ranks in zip(self.monitors, zip(*measured, strict=True), strict=True):
            record |= monitor.measured(state, list(ranks))
        if dist.get_global_rank() == 0:
            append_line(self.folder.metrics, record)
        number = self.stages.index(record["stage"]) + 1
        again = f" ({self.rollbacks})" if self.rollbacks else ""
        by_stage = {"recipe/stage": number, f"loss/stage/{record['stage']}{again}": record["loss"]}
        logger.log_metrics(logged(record) | by_stage)

    def eval_end(self, state: State, logger: Logger) -> None:
        label = state.dataloader_label
        values = {name: metric.compute().item() for name, metric in state.eval_metrics[label].items()}
        values |= self._means_of_tasks(state.model.objectives[label], label, values)
        record = {
            "batch": state.timestamp.batch.value,
            "token": state.timestamp.token.value,
            "rollbacks": self.rollbacks,
            "stage": label,
            "row_length": state.batch["row_length"],
            **state.model.network.knobs,
        }
        if dist.get_global_rank() == 0:
            append_line(self.folder.evaluations, record | values)
        logger.log_metrics({f"eval/{label}/{name}": value for name, value in values.items()})

    def _means_of_tasks(self, objective: Objective, stage: str, values: dict[str, float]) -> dict[str, float]:
        """Average the tasks' metrics by their weights, as an update's loss is by blocks; nothing without tasks."""
        if not objective.tasks:
            return {}
        segment = next(segment for segment in self.plan.segments if segment.stage == stage)
        shares = _shares(segment.mixture or objective.weights)
        return {
            metric.name: sum(share * values[f"{metric.name}/{task}"] for task, share in shares.items())
            for metric in objective.metrics
        }


def _shares(amounts: dict[str, float]) -> dict[str, float]:
    total = sum(amounts.values())
    return {source: amount / total for source, amount in sorted(amounts.items())}
