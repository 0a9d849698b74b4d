"""The metrics of fine-tuned models, as torchmetrics classes; Composer uses the class's name."""

import re
import warnings
from collections.abc import Iterable
from itertools import groupby

import numpy as np
import seqeval.metrics
import torch
from composer.metrics import BinaryF1Score
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchmetrics import Metric, PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassMatthewsCorrCoef

from rotary_foundry.finetuning.example_encoding import NO_LABEL
from rotary_foundry.finetuning.head_models import ChoiceScores, WindowAnswer

PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》…·、「」（）－～『』")  # CMRC2018 ignores it


class _ZeroForNone:
    """Returns 0 if a metric is undefined, as for equal predictions: no score would compare as better than NaN."""

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

    `update` takes logits [sentences, tokens, labels] and label numbers [sentences, tokens], NO_LABEL for no label.
    """

    full_state_update = False

    def __init__(self, labels: list[str]):
        super().__init__()
        self.labels = labels
        self.add_state("predicted", default=[], dist_reduce_fx=None)  # a tensor [words] per sentence
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
            warnings.simplefilter("ignore")  # seqeval warns if a kind has no entity or no prediction; it counts as 0
            return torch.tensor(seqeval.metrics.f1_score(true, predicted, zero_division=0))


class _OfPredictions(Metric):
    """A metric of the predictions of `head_models.py`, which are not tensors."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.found: list = []

    def update(self, predictions: list) -> None:
        self.found += predictions

    def reset(self) -> None:
        super().reset()
        self.found = []


class ChoiceAccuracy(_OfPredictions):
    """The share of right choices, after assignment within a group."""

    def compute(self) -> Tensor:
        return _mean(row.label == choice for row, choice in zip(self.found, choose(self.found), strict=True))


class ExactMatch(_OfPredictions):
    """The share of questions whose answer equals a right one, ignoring punctuation, blanks and case."""

    def compute(self) -> Tensor:
        best = best_answers(self.found)
        return _mean(any(units(one.text) == units(answer) for answer in one.answers) for one in best)


class AnswerF1(_OfPredictions):
    """CMRC2018's mean F1 of answers, computed from the longest run of characters in common with a right answer."""

    def compute(self) -> Tensor:
        best = best_answers(self.found)
        return _mean(max((overlap_f1(one.text, answer) for answer in one.answers), default=0.0) for one in best)


class SpanF1(_OfPredictions):
    """F1 over the entities of all texts; one is correct if its kind and both of its ends are."""

    def compute(self) -> Tensor:
        correct = sum(len(text.predicted & text.right) for text in self.found)
        counted = sum(len(text.predicted) + len(text.right) for text in self.found)
        return torch.tensor(2 * correct / counted if counted else 0.0)


def _mean(values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float32).mean()


def choose(rows: list[ChoiceScores]) -> list[int]:
    """Return the choice of every row: the assignment with the highest sum of scores within each group.

    Args:
        rows: the rows of a group are adjacent, and not more than there are choices.
    """
    chosen: list[int] = []
    for _, group in groupby(rows, key=lambda row: row.group):
        scores = np.nan_to_num([row.scores for row in group])  # a diverged model gives NaN
        chosen += linear_sum_assignment(scores, maximize=True)[1].tolist()
    return chosen


def best_answers(windows: list[WindowAnswer]) -> list[WindowAnswer]:
    """Return for every question the answer of its window with the highest score."""
    return [
        max(of_question, key=lambda window: window.score)
        for _, of_question in groupby(windows, key=lambda window: window.number)
    ]


def units(text: str) -> list[str]:
    """Return the units that CMRC2018 compares: words and numbers in Latin letters, and every other character."""
    kept = "".join(character for character in text.lower() if character not in PUNCTUATION)
    return re.findall(r"[a-z0-9.]+|\S", kept)


def overlap_f1(predicted: str, right: str) -> float:
    """Return the F1 of the longest common run of units."""
    first, second = units(predicted), units(right)
    runs, longest = [0] * (len(second) + 1), 0  # common runs that end at each unit of `second`
    for one in first:
        runs = [0, *(runs[place] + 1 if one == other else 0 for place, other in enumerate(second))]
        longest = max(longest, *runs)
    return 2 * longest / (len(first) + len(second)) if longest else 0.0


def make_metric(name: str, labels: list[str]) -> Metric:
    """Make the metric with this name in a YAML, for a model with these labels."""
    makers = {
        "accuracy": lambda: MulticlassAccuracy(len(labels), average="micro"),
        "f1": F1,
        "macro_f1": lambda: MulticlassF1Score(len(labels), average="macro"),
        "mcc": lambda: MulticlassMatthewsCorrCoef(len(labels)),
        "pearson": Pearson,
        "spearman": Spearman,
        "word_accuracy": lambda: WordAccuracy(labels),
        "entity_f1": lambda: EntityF1(labels),
        "choice_accuracy": ChoiceAccuracy,
        "exact_match": ExactMatch,
        "answer_f1": AnswerF1,
        "span_f1": SpanF1,
    }
    return makers[name]()
