"""Classification heads, for exports that transformers' classification models load whole.

A ModernBERT classifier is a dense layer, a norm and a linear map to the labels. The first two are pretrained: they are
the masked language model's prediction head, and bear the same names. The linear map is new in every case, drawn here as
transformers would draw it; the decoder's bias has no place there and is left out. So such a directory saves whoever
loads it the warning about new weights, fixes the labels' names and makes the first step reproducible. It holds no
knowledge of the task, and masks cannot be filled with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rotary_foundry.models.modernbert.initialisation import CUTOFF
from rotary_foundry.utils.errors import ConfigurationError

ARCHITECTURES = {"sequence": "ModernBertForSequenceClassification", "token": "ModernBertForTokenClassification"}


@dataclass(frozen=True)
class Head:
    """A new classifier.

    Raises:
        ConfigurationError: it has no label, or one twice.
    """

    of: str  # sequence or token
    labels: tuple[str, ...]  # a single one is a regression's, to transformers
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.labels or not all(self.labels) or len(set(self.labels)) < len(self.labels):
            raise ConfigurationError(
                f"labels: {','.join(self.labels)!r}; each needs a name, and a name of its own, as in negative,positive"
            )

    @property
    def architecture(self) -> str:
        """transformers' class."""
        return ARCHITECTURES[self.of]

    def settings(self) -> dict:
        """What config.json says of it."""
        return {
            "architectures": [self.architecture],
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: index for index, label in enumerate(self.labels)},
        }

    def in_place_of_decoder(self, network: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A MaskedLM's parameters with the classifier's instead of the decoder's."""
        kept = {name: network[name] for name in network if not name.startswith("decoder.")}
        hidden = kept["head.norm.weight"].shape[0]
        weight, std = torch.empty(len(self.labels), hidden), hidden**-0.5
        generator = torch.Generator().manual_seed(self.seed)
        nn.init.trunc_normal_(weight, std=std, a=-CUTOFF * std, b=CUTOFF * std, generator=generator)
        return kept | {"classifier.weight": weight, "classifier.bias": torch.zeros(len(self.labels))}
