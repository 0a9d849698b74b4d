"""The metrics of fine-tuned models, as torchmetrics; Composer names each by its class."""

import warnings

import seqeval.metrics
import torch
from composer.metrics import BinaryF1Score
from torch import Tensor
from torchmetrics import Metric, PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassMatthewsCorrCoef

from rotary_foundry.finetuning.example_encoding import NO_LABEL


class _ZeroForNone:
    """Returns 0 if a metric is undefined, as for equal predictions; after NaN, no score would compare as better."""

    def compute(self) -> Tensor:
        return super().compute().nan_to_num(0.0)


class F1(_ZeroForNone, BinaryF1Score):
    """F1 of the second of two labels."""


class Pearson(_ZeroForNone, PearsonCorrCoef):
    """Pearson's r."""


class Spearman(_ZeroForNone, SpearmanCorrCoef):
    """Spearman's rho."""


class WordAccuracy(Metric):
    """The share of words that have the right label.

    `update` takes logits [sentences, tokens, labels] and label numbers [sentences, tokens], NO_LABEL where none is.
    """

    full_state_update = False

    def __init__(self, labels: list[str]):
        super().__init__()
        self.labels = labels
        self.add_state("predicted", default=[], dist_reduce_fx=None)  # a tensor [words] a sentence
        self.add_state("true", default=[], dist_reduce_fx=None)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        for sentence, target in zip(logits.argmax(-1), labels, strict=True):
            self.predicted.append(sentence[target != NO_LABEL])
            self.true.append(target[target != NO_LABEL])

    def compute(self) -> Tensor:
        return (torch.cat(self.predicted) == torch.cat(self.true)).float().mean()


class EntityF1(WordAccuracy):
    """seqeval's F1 over entities of all kinds; an entity is correct if its first word, last word and kind are."""

    def compute(self) -> Tensor:
        true, predicted = (
            [[self.labels[number] for number in words.tolist()] for words in sentences]
            for sentences in (self.true, self.predicted)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # there is none of a kind, or none is predicted: 0
            return torch.tensor(seqeval.metrics.f1_score(true, predicted, zero_division=0))


def make_metric(name: str, labels: list[str]) -> Metric:
    """A metric by its name in a YAML, for a model with these labels."""
    makers = {
        "accuracy": lambda: MulticlassAccuracy(len(labels), average="micro"),
        "f1": F1,
        "macro_f1": lambda: MulticlassF1Score(len(labels), average="macro"),
        "mcc": lambda: MulticlassMatthewsCorrCoef(len(labels)),
        "pearson": Pearson,
        "spearman": Spearman,
        "word_accuracy": lambda: WordAccuracy(labels),
        "entity_f1": lambda: EntityF1(labels),
    }
    return makers[name]()
