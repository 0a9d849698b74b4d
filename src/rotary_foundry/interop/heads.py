"""Classification heads, for exports that transformers' classification models load whole.

The classifier is new in every case, so it holds no knowledge of the task. Such a directory saves whoever loads it the
warning about new weights, fixes the labels' names and makes the first step reproducible. It cannot fill masks.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from rotary_foundry.models.family import Family
from rotary_foundry.utils.errors import ConfigurationError


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

    def settings(self, family: Family) -> dict:
        """Return what config.json says of it."""
        return {
            "architectures": [family.huggingface.classifiers[self.of]],
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: index for index, label in enumerate(self.labels)},
        }

    def in_place_of_output(self, family: Family, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a network's parameters with this classifier instead of the pretraining output."""
        return family.huggingface.with_classifier(state, len(self.labels), self.seed)
