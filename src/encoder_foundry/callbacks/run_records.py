"""RunRecords: `metrics.jsonl`, a line an update, and `eval.jsonl`, a line an evaluation.

Plain files, because everything else (the summary, the report, a user's notebook) reads them without a service. A
resumed run appends: `batch` counts on, so the last line for a batch is the one that holds. Uses FIT_START, BATCH_START,
AFTER_LOSS, BATCH_END and EVAL_END.

A mixture asks for shares of a stage's rows; what counts in training are tokens. So each line has both, by source:
`asked`, and `drawn`, the share of all tokens that the stage has drawn so far. A resumed or rolled back run counts on
from the lines that hold, so that nothing of it is in a checkpoint; to W&B they go as `data/asked/<source>` and
`data/drawn/<source>`.
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

    def fit_start(self, state: State, logger: Logger) -> None:
        self.drawn: dict[str, Counter] = {}  # tokens by source, of each stage
        if dist.get_global_rank() == 0:
            for line in self.folder.records(self.folder.metrics):
                if line["batch"] <= state.timestamp.batch.value:
                    self.drawn.setdefault(line["stage"], Counter()).update(line.get("tokens_by_source", {}))

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
        seen = dist.all_gather_object([self.batch[key] for key in ("row_digests", "row_sources", "row_tokens")])
        digests, sources, row_tokens = (list(chain.from_iterable(lists)) for lists in zip(*seen, strict=True))
        tokens_by_source = Counter()
        for source, tokens in zip(sources, row_tokens, strict=True):
            tokens_by_source[source] += tokens
        drawn = self.drawn.setdefault(state.dataloader_label, Counter())
        drawn.update(tokens_by_source)
        asked = _shares(state.dataloader.dataset.draw.mixture or state.dataloader.dataset.rows_by_source)
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
            "asked": asked,
            "drawn": _shares(dict.fromkeys(asked, 0) | drawn),
            "rows_by_source": dict(sorted(Counter(sources).items())),
            "tokens_by_source": dict(sorted(tokens_by_source.items())),
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
                **{f"data/asked/{source}": share for source, share in record["asked"].items()},
                **{f"data/drawn/{source}": share for source, share in record["drawn"].items()},
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


def _shares(amounts: dict[str, float]) -> dict[str, float]:
    total = sum(amounts.values())
    return {source: amount / total for source, amount in sorted(amounts.items())}
