"""The network as Composer trains it.

The loss is the mean over the masked tokens of one microbatch: Composer, told to `accumulate_train_batch_on_tokens`,
weights it by the microbatch's share of the update's masked tokens on all ranks, so that an update's gradient does not
depend on how it is split.
"""

import contextlib

import torch
from composer.models import ComposerModel
from torch import Tensor
from torchmetrics import MeanMetric, Metric

from rotary_foundry.data.batches import Batch
from rotary_foundry.models.layers.cross_entropy import MaskedLoss
from rotary_foundry.models.modernbert.network import MaskedLM


class PerMaskedToken(MeanMetric):
    """Mean of one of the sums of MaskedLoss over all masked tokens, of all batches and ranks."""

    def __init__(self, field: str):
        super().__init__()
        self.field = field

    def update(self, outputs: MaskedLoss) -> None:
        if outputs.tokens:
            super().update(getattr(outputs, self.field) / outputs.tokens, weight=outputs.tokens)


METRICS = {"loss": "cross_entropy", "masked_accuracy": "correct"}


class ComposerMaskedLM(ComposerModel):
    """Masked-LM training of a network.

    Args:
        network: the model.
        cpu_autocast: compute in bf16 under autocast on CPU, where Composer itself refuses `amp_bf16`.
    """

    def __init__(self, network: MaskedLM, cpu_autocast: bool):
        super().__init__()
        self.network = network
        self.cpu_autocast = cpu_autocast

    def forward(self, batch: Batch) -> MaskedLoss:
        bf16 = torch.autocast("cpu", torch.bfloat16) if self.cpu_autocast else contextlib.nullcontext()
        with bf16:
            return self.network(batch["input_ids"], batch["cu_seqlens"], batch["row_length"], batch["labels"])

    def loss(self, outputs: MaskedLoss, batch: Batch) -> Tensor:
        """Mean cross entropy in nats over the microbatch's masked tokens."""
        return outputs.cross_entropy / max(1, outputs.tokens)

    def eval_forward(self, batch: Batch, outputs: MaskedLoss | None = None) -> MaskedLoss:
        return self.forward(batch) if outputs is None else outputs

    def get_metrics(self, is_train: bool) -> dict[str, Metric]:
        return {} if is_train else {name: PerMaskedToken(field) for name, field in METRICS.items()}

    def update_metric(self, batch: Batch, outputs: MaskedLoss, metric: Metric) -> None:
        metric.update(outputs)

    @property
    def rope_theta(self) -> float:
        """Theta of the global layers."""
        return self.network.model.rope_theta

    @rope_theta.setter
    def rope_theta(self, theta: float) -> None:
        self.network.model.rope_theta = theta
