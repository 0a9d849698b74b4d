"""RunRecords: `metrics.jsonl`, a line an update, and `eval.jsonl`, a line an evaluation.

Plain files, because everything else (the summary, the report, a user's notebook) reads them without a service. A
resumed run appends: `batch` counts on, so the last line for a batch is the one that holds. Uses BATCH_START,
AFTER_LOSS, BATCH_END and EVAL_END.
"""

from collections import Counter
from itertools import chain

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from encoder_foundry.data.batches import update_digest
from encoder_foundry.run_folder import RunFolder, append_line


class RunRecords(Callback):
    """Writes a run's records on rank 0.

    Args:
        folder: of the run.
        rollbacks: how many the run has had.
    """

    def __init__(self, folder: RunFolder, rollbacks: int):
        self.folder = folder
        self.rollbacks = rollbacks

    def batch_start(self, state: State, logger: Logger) -> None:
        self.correct = state.device.tensor_to_device(torch.zeros((), dtype=torch.int64))
        self.masked = 0
        self.batch = state.batch

    def after_loss(self, state: State, logger: Logger) -> None:
        self.correct += state.outputs.correct
        self.masked += state.outputs.tokens

    def batch_end(self, state: State, logger: Logger) -> None:
        # the clock has moved on: `token` and `batch` count what is done, this update included
        totals = torch.tensor(
            [int(self.correct), self.masked, sum(self.batch["row_tokens"]), len(self.batch["row_tokens"])]
        )
        totals = state.device.tensor_to_device(totals)
        dist.all_reduce(totals, reduce_operation="SUM")
        correct, masked, real_tokens, rows = totals.tolist()
        seen = dist.all_gather_object((self.batch["row_digests"], self.batch["row_sources"]))
        digests, sources = (list(chain.from_iterable(lists)) for lists in zip(*seen, strict=True))
        optimizer = state.optimizers[0]
        record = {
            "batch": state.timestamp.batch.value,
            "token": state.timestamp.token.value,
            "rollbacks": self.rollbacks,
            "stage": state.dataloader_label,
            "loss": state.total_loss_dict["loss/train/total"],
            "masked_accuracy": correct / max(1, masked),
            "lr": optimizer.param_groups[0]["lr"],
            "weight_decay": max(group["weight_decay"] for group in optimizer.param_groups),
            "rows": rows,
            "row_length": self.batch["row_length"],
            "rope_theta": state.model.rope_theta,
            "mixture": state.dataloader.dataset.draw.mixture,
            "rows_by_source": dict(sorted(Counter(sources).items())),
            "real_tokens": real_tokens,
            "tokens_per_second": real_tokens / state.timestamp.batch_wct.total_seconds(),
            "rows_digest": update_digest(digests),
        }
        if dist.get_global_rank() == 0:
            append_line(self.folder.metrics, record)
        logger.log_metrics(
            {
                "recipe/lr": record["lr"],
                "recipe/rows": rows,
                "recipe/row_length": record["row_length"],
                "recipe/rope_theta": record["rope_theta"],
                "data/real_tokens": real_tokens,
                "throughput/tokens_per_second": record["tokens_per_second"],
                "metrics/train/masked_accuracy": record["masked_accuracy"],
            }
        )

    def eval_end(self, state: State, logger: Logger) -> None:
        values = {name: metric.compute().item() for name, metric in state.eval_metrics[state.dataloader_label].items()}
        record = {
            "batch": state.timestamp.batch.value,
            "token": state.timestamp.token.value,
            "rollbacks": self.rollbacks,
            "stage": state.dataloader_label,
            "row_length": state.batch["row_length"],
            "rope_theta": state.model.rope_theta,
        }
        if dist.get_global_rank() == 0:
            append_line(self.folder.evaluations, record | values)
