"""The network as Composer trains it.

The network is the one child module, so that FSDP2 as Composer applies it wraps the network as the root and its layers
inside (`fsdp_wrap_fn`). The loss is the mean over the masked tokens of one microbatch: Composer, told to
`accumulate_train_batch_on_tokens`, weights it by the microbatch's share of the update's masked tokens on all ranks, so
that an update's gradient does not depend on how it is split.
"""

import contextlib

import torch
import torch.nn.functional as F
from composer.metrics import LanguageCrossEntropy, MaskedAccuracy
from composer.models import ComposerModel
from torch import Tensor
from torchmetrics import Metric

from encoder_foundry.data.batches import Batch
from encoder_foundry.data.masking import IGNORE_INDEX
from encoder_foundry.model.masked_lm import MaskedLM

METRICS = {"loss": LanguageCrossEntropy, "masked_accuracy": MaskedAccuracy}


class ComposerMaskedLM(ComposerModel):
    """Masked-LM training of a network.

    Args:
        network: the model; its layers become FSDP2 units.
        cpu_autocast: compute in bf16 under autocast on CPU, where Composer itself refuses `amp_bf16`.
    """

    def __init__(self, network: MaskedLM, cpu_autocast: bool):
        super().__init__()
        self.network = network
        self.cpu_autocast = cpu_autocast
        self.gradient_scale = 1.0  # 1 / world size where the backend sums gradients when asked for their mean
        network.fsdp_wrap_fn = set(network.model.layers).__contains__

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`logits` [masked, vocabulary] and `targets` [masked], at the positions that have a label."""
        at = (batch["labels"] != IGNORE_INDEX).nonzero(as_tuple=True)[0]
        bf16 = torch.autocast("cpu", torch.bfloat16) if self.cpu_autocast else contextlib.nullcontext()
        with bf16:
            logits = self.network(batch["input_ids"], batch["cu_seqlens"], batch["row_length"], at=at)
        return {"logits": logits, "targets": batch["labels"][at]}

    def loss(self, outputs: dict[str, Tensor], batch: Batch) -> Tensor:
        """Mean cross entropy in nats over the microbatch's masked tokens, its gradient times `gradient_scale`."""
        total = F.cross_entropy(outputs["logits"].float(), outputs["targets"], reduction="sum")
        loss = total / max(1, len(outputs["targets"]))
        return loss.detach() + self.gradient_scale * (loss - loss.detach())

    def eval_forward(self, batch: Batch, outputs: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        return self.forward(batch) if outputs is None else outputs

    def get_metrics(self, is_train: bool) -> dict[str, Metric]:
        return {} if is_train else {name: metric() for name, metric in METRICS.items()}

    def update_metric(self, batch: Batch, outputs: dict[str, Tensor], metric: Metric) -> None:
        if len(outputs["targets"]):
            metric.update(outputs["logits"].float(), outputs["targets"])

    @property
    def rope_theta(self) -> float:
        """Theta of the global layers."""
        return self.network.model.rope_theta

    @rope_theta.setter
    def rope_theta(self, theta: float) -> None:
        self.network.model.rope_theta = theta
