"""Classification heads, for exports that transformers' classification models load completely.

The classifier is always new and untrained. Such a directory loads without a warning about new weights, fixes the names
of the labels, and makes the first training step reproducible. It cannot fill masks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from rotary_foundry.models.family import Family
from rotary_foundry.utils.errors import ConfigurationError


@dataclass(frozen=True)
class Head:
    """A new classifier.

    Raises:
        ConfigurationError: a label has no name, or two labels have the same.
    """

    of: str  # sequence or token
    labels: tuple[str, ...]  # transformers treats a single label as a regression
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.labels or not all(self.labels) or len(set(self.labels)) < len(self.labels):
            raise ConfigurationError(
                f"labels: expected different names, as in negative,positive, got {','.join(self.labels)!r}"
            )

    @property
    def pipeline_tag(self) -> str:
        """Hugging Face's name for the task."""
        return {"sequence": "text-classification", "token": "token-classification"}[self.of]

    def settings(self, family: Family) -> dict:
        """Return the classifier's settings for config.json."""
        return {
            "architectures": [family.huggingface.classifiers[self.of]],
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: index for index, label in enumerate(self.labels)},
        }

    def in_place_of_output(self, family: Family, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a network's parameters with this classifier instead of the pretraining output."""
        return family.huggingface.with_classifier(state, len(self.labels), self.seed)

    def write_files(self, directory: Path) -> None:
        """Write nothing: transformers computes the head."""
