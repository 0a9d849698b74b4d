"""The ComposerModel that combines a network and an objective.

The loss is the mean over the predicted tokens of one microbatch. With `accumulate_train_batch_on_tokens`, Composer
weights it by the microbatch's share of the update's predicted tokens on all ranks. So an update's gradient does not
depend on how the update is split. If tokens have weights, the sum of the weights takes the place of their number.

Compiled layers get the same number of tokens in every microbatch of a stage: each is padded to whole rows. Only the
number of documents varies. It is marked as dynamic, because only the attention kernel uses it. The number of predicted
tokens also varies, but only after the layers; the loss has a graph for any number (layers/cross_entropy.py). The loss,
the records and the token clock count the batch without this padding.
"""

import contextlib
from collections.abc import Mapping

import torch
from composer.models import ComposerModel
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from rotary_foundry.compat.torch import vary_in_size
from rotary_foundry.data.batches import Batch, filled
from rotary_foundry.models.layers.cross_entropy import TokenLoss
from rotary_foundry.objectives.objective import Objective


class PerPredictedToken(MeanMetric):
    """The mean of one sum in TokenLoss over the predicted tokens of all batches and ranks.

    Args:
        field: the field of TokenLoss that has the sum.
        task: count only the batches of this task; None: all.
    """

    def __init__(self, field: str, task: str | None = None):
        super().__init__()
        self.field = field
        self.task = task

    def update(self, outputs: TokenLoss) -> None:
        if count := outputs.count(self.field):
            super().update(getattr(outputs, self.field) / count, weight=count)


def evaluation_metrics(objective: Objective) -> dict[str, PerPredictedToken]:
    """Return an objective's metrics by name; in a multi-task stage also those of each task, as `loss/<task>`."""
    return {
        metric.name if task is None else f"{metric.name}/{task}": PerPredictedToken(metric.field, task)
        for task in (None, *objective.tasks)
        for metric in objective.metrics
    }


class FoundryModel(ComposerModel):
    """Trains a network, stage by stage.

    Args:
        network: a network of any family.
        objectives: the objectives by stage.
        stage: the stage whose objective is the loss; may be changed between updates.
        cpu_autocast: compute in bf16 under autocast on CPU, where Composer refuses `amp_bf16`.
        static_rows: the rows that microbatches are filled to, by stage, if layers are compiled; None: not filled.
    """

    def __init__(
        self,
        network: nn.Module,
        objectives: Mapping[str, Objective],
        stage: str,
        cpu_autocast: bool,
        static_rows: Mapping[str, int] | None = None,
    ):
        super().__init__()
        self.network = network
        self.objectives = objectives
        self.stage = stage
        self.cpu_autocast = cpu_autocast
        self.static_rows = static_rows

    @property
    def objective(self) -> Objective:
        return self.objectives[self.stage]

    def forward(self, batch: Batch) -> TokenLoss:
        bf16 = torch.autocast("cpu", torch.bfloat16) if self.cpu_autocast else contextlib.nullcontext()
        if self.static_rows is not None:
            batch = filled(batch, self.static_rows[self.stage])
            vary_in_size(batch["cu_seqlens"])
        with bf16:
            return self.objective.loss(self.network, batch)

    def loss(self, outputs: TokenLoss, batch: Batch) -> Tensor:
        """Return the mean cross entropy in nats over the microbatch's predicted tokens; 0 if there are none."""
        return outputs.cross_entropy / (outputs.tokens or 1)

    def eval_forward(self, batch: Batch, outputs: TokenLoss | None = None) -> TokenLoss:
        return self.forward(batch) if outputs is None else outputs

    def get_metrics(self, is_train: bool) -> dict[str, Metric]:
        if is_train:
            return {}
        of_stages = map(evaluation_metrics, self.objectives.values())
        return {name: metric for metrics in of_stages for name, metric in metrics.items()}

    def update_metric(self, batch: Batch, outputs: TokenLoss, metric: Metric) -> None:
        if metric.task in (None, batch["row_sources"][0]):
            metric.update(outputs)
