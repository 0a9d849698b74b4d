"""RunRecords: write `metrics.jsonl`, one line per update, and `eval.jsonl`, one line per evaluation.

The records are plain files, so that the summary, the report and a user's notebook read them without a service. A
resumed run appends and continues to count in `batch`, so only the last line for each batch is valid. Uses FIT_START,
BATCH_START, AFTER_LOSS, AFTER_TRAIN_BATCH, BATCH_END, EVAL_END and CLOSE.

A mixture sets shares of a stage's rows, but training depends on shares of tokens. So each line has both, by source:
`asked`, and `drawn`, the share of all tokens that the stage has drawn so far. If there are many sources, only the
largest are named, and the others are summed (recipe/mixtures.py). A resumed or rolled-back run continues the counts
from the valid lines, so that checkpoints need not hold them.

Each line also has the values of the monitors. The loggers of rank 0 get the numbers of the lines under the names in
`metric_keys.py`. Every rank sends rank 0 one array per update, from host to host, so that no other rank and no GPU
waits for it. A thread writes the lines, so that no update waits for a shared disk; a checkpoint waits for its lines.
The file stays open, because on such a disk closing it costs more than writing to it.
"""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain

import numpy as np
import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from numpy.typing import NDArray
from torch import distributed

from rotary_foundry.callbacks.monitor import Monitor
from rotary_foundry.data.batches import digest_of_numbers
from rotary_foundry.loggers.metric_keys import logged
from rotary_foundry.objectives.objective import Objective
from rotary_foundry.recipe import Plan
from rotary_foundry.recipe.mixtures import grouped
from rotary_foundry.runs.record_files import append_line, open_lines, write_line
from rotary_foundry.runs.run_folder import RunFolder
from rotary_foundry.utils.cpu_group import cpu_group

NO_ROW = 0, 0, 0  # a row has the number of its source, its tokens and its digest


class RunRecords(Callback):
    """Writes a run's records on rank 0.

    Args:
        folder: the run's folder.
        rollbacks: the number of rollbacks that the run has had.
        plan: the current plan.
        monitors: called at every update, in this order.
        dist_timeout: seconds that a collective may take.
    """

    def __init__(self, folder: RunFolder, rollbacks: int, plan: Plan, monitors: Sequence[Monitor], dist_timeout: float):
        self.folder = folder
        self.rollbacks = rollbacks
        self.plan = plan
        self.stages = list(plan.stage_ends)
        self.monitors = monitors
        self.dist_timeout = dist_timeout
        self.file = None
        self.writer = ThreadPoolExecutor(1)
        self.written: Future | None = None

    def wait(self) -> None:
        """Wait until all lines are written.

        Raises:
            OSError: a line could not be written.
        """
        written, self.written = self.written, None
        if written is not None:
            written.result()

    def fit_start(self, state: State, logger: Logger) -> None:
        self.group = cpu_group(self.dist_timeout)
        self.drawn: dict[str, Counter] = {}  # tokens by source, of each stage
        if dist.get_global_rank() == 0:
            lines = self.folder.records(self.folder.metrics, ("batch", "stage", "loss", "tokens_by_source"))
            lines = [line for line in lines if line["batch"] <= state.timestamp.batch.value]
            for line in lines:
                self.drawn.setdefault(line["stage"], Counter()).update(line["tokens_by_source"] or {})
            for monitor in self.monitors:
                monitor.resume(lines)
            self.file = open_lines(self.folder.metrics)

    def close(self, state: State, logger: Logger) -> None:
        self.writer.shutdown()
        if self.file is not None:
            self.file.close()

    def batch_start(self, state: State, logger: Logger) -> None:
        self.metrics = [metric for metric in state.model.objective.metrics if metric.name != "loss"]
        self.sums = state.device.tensor_to_device(torch.zeros(len(self.metrics), dtype=torch.int64))
        self.predicted = 0
        self.batch = state.batch

    def after_loss(self, state: State, logger: Logger) -> None:
        for place, metric in enumerate(self.metrics):
            self.sums[place] += getattr(state.outputs, metric.field)
        self.predicted += state.outputs.count("correct")

    def after_train_batch(self, state: State, logger: Logger) -> None:
        self.counts = [int(self.predicted), *self.sums.tolist()]  # Composer waits for the update's loss here as well

    def batch_end(self, state: State, logger: Logger) -> None:
        local = [monitor.local(state) for monitor in self.monitors]
        sources = sorted(state.dataloader.dataset.rows_by_source)
        numbers, rows = self._gather([*self.counts, *chain.from_iterable(map(dict.values, local))], sources)
        if numbers is None:
            return
        # the clock has advanced: `token` and `batch` include this update
        counted, values = np.split(numbers, [len(self.counts)], axis=1)
        predicted, *sums = counted.sum(axis=0).tolist()
        rows_by_source, tokens_by_source = _by_source(rows, sources)
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
            **{metric.name: total / max(1, predicted) for metric, total in zip(self.metrics, sums, strict=True)},
            "lr": optimizer.param_groups[0]["lr"],
            "weight_decay": max(group["weight_decay"] for group in optimizer.param_groups),
            **{key: optimizer.param_groups[0][key] for key in ("betas", "max_grad_norm") if key in optimizer.defaults},
            "rows": len(rows),
            "row_length": self.batch["row_length"],
            **self.plan.at(state.previous_timestamp.token.value).knobs,
            **state.model.network.knobs,
            "mixture": mixture and grouped(mixture),
            "asked": grouped(asked),
            "drawn": grouped(_shares(dict.fromkeys(asked, 0) | drawn), asked),
            "rows_by_source": rows_by_source,
            "tokens_by_source": tokens_by_source,
            "real_tokens": sum(tokens_by_source.values()),
            "rows_digest": digest_of_numbers(rows[:, 2].view(np.uint64)),
        }
        places = np.cumsum([len(of_monitor) for of_monitor in local])[:-1]
        for monitor, keys, of_ranks in zip(self.monitors, local, np.split(values, places, axis=1), strict=True):
            ranks = [dict(zip(keys, of_rank, strict=True)) for of_rank in of_ranks.tolist()]
            record |= monitor.measured(state, ranks)
        self.wait()
        self.written = self.writer.submit(write_line, self.file, record)
        number = self.stages.index(record["stage"]) + 1
        again = f" ({self.rollbacks})" if self.rollbacks else ""
        by_stage = {"recipe/stage": number, f"loss/stage/{record['stage']}{again}": record["loss"]}
        logger.log_metrics(logged(record) | by_stage)

    def _gather(self, numbers: list[float], sources: list[str]) -> tuple[NDArray, NDArray] | tuple[None, None]:
        """Bring the numbers and rows of an update to rank 0.

        Returns:
            numbers float64 [ranks, numbers] and rows int64 [rows, 3]; None on the other ranks.
        """
        place = {source: number for number, source in enumerate(sources)}
        columns = (self.batch[key] for key in ("row_sources", "row_tokens", "row_digests"))
        rows = [(place[source], tokens, int(digest, 16)) for source, tokens, digest in zip(*columns, strict=True)]
        rows += [NO_ROW] * (self.batch["most_rows"] - len(rows))
        own = np.concatenate(
            [np.array(numbers, np.float64).view(np.int64), np.array(rows, np.uint64).view(np.int64).ravel()]
        )
        first, ranks = dist.get_global_rank() == 0, dist.get_world_size()
        gathered = torch.empty(ranks, len(own), dtype=torch.int64) if first else None
        distributed.gather(torch.from_numpy(own), list(gathered) if first else None, group=self.group)
        if not first:
            return None, None
        of_numbers, of_rows = np.split(gathered.numpy(), [len(numbers)], axis=1)
        rows = of_rows.reshape(-1, len(NO_ROW))
        return np.ascontiguousarray(of_numbers).view(np.float64), rows[rows[:, 1] > 0]

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
        """Average the tasks' metrics by their weights, like an update's loss by blocks; empty without tasks."""
        if not objective.tasks:
            return {}
        segment = next(segment for segment in self.plan.segments if segment.stage == stage)
        shares = _shares(segment.mixture or objective.weights)
        return {
            metric.name: sum(share * values[f"{metric.name}/{task}"] for task, share in shares.items())
            for metric in objective.metrics
        }


def _by_source(rows: NDArray, sources: list[str]) -> tuple[dict[str, int], dict[str, int]]:
    """Count an update's rows and tokens by source, for each source in it."""
    counted, tokens = np.bincount(rows[:, 0], minlength=len(sources)), np.zeros(len(sources), np.int64)
    np.add.at(tokens, rows[:, 0], rows[:, 1])
    there = np.flatnonzero(counted).tolist()
    return tuple({sources[place]: int(of_source[place]) for place in there} for of_source in (counted, tokens))


def _shares(amounts: dict[str, float]) -> dict[str, float]:
    total = sum(amounts.values())
    return {source: amount / total for source, amount in sorted(amounts.items())}
