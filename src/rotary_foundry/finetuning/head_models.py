"""Models for choices, answers and entities: an encoder, a head, its loss, and its predictions for a row.

- A choice is scored by transformers' classifier with one label. So the best model is a directory that
  `AutoModelForSequenceClassification` loads. Composer counts a row as one example for any number of choices.
- Answers and entities have a head of ours on `AutoModel`. The best model is a directory that `AutoModel` loads, with
  the head in POINTER beside it; `load_span_model` loads both.

A prediction keeps the right answer and the id of its row, because the score of a question or of a group of blanks
depends on several rows, which may be in different batches.
"""

from abc import abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from composer.models import ComposerModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchmetrics import Metric
from transformers import AutoModel, PreTrainedModel

from rotary_foundry.interop.trained_heads import POINTER
from rotary_foundry.models.in_transformers import load_theirs
from rotary_foundry.models.layers.span_scores import (
    EfficientGlobalPointer,
    GlobalPointer,
    many_spans_loss,
    one_span_loss,
)
from rotary_foundry.utils.errors import DataError

POINTERS = {"answer": GlobalPointer, "entities": EfficientGlobalPointer}


class ChoiceScores(NamedTuple):
    """The scores of a row's choices."""

    scores: tuple[float, ...]
    label: int  # -1: unknown
    group: int
    id: str


class WindowAnswer(NamedTuple):
    """The best span of a window."""

    number: int  # of the question
    score: float
    text: str
    answers: tuple[str, ...]
    id: str


class TextEntities(NamedTuple):
    """The entities of a text: (number of the kind, start, end) in characters."""

    predicted: frozenset[tuple[int, int, int]]
    right: frozenset[tuple[int, int, int]]
    text: str
    id: str


class HeadModel(ComposerModel):
    """A model whose metrics take predictions for rows.

    Args:
        model: the module that Composer trains.
        metrics: each with `update(predictions)`.
    """

    def __init__(self, model: nn.Module, metrics: list[Metric]):
        super().__init__()
        self.model = model
        self.metrics = {type(metric).__name__: metric for metric in metrics}

    def eval_forward(self, batch: dict, outputs: Tensor | None = None) -> Tensor:
        return self.forward(batch) if outputs is None else outputs

    def get_metrics(self, is_train: bool) -> dict[str, Metric]:
        return {} if is_train else self.metrics

    def update_metric(self, batch: dict, outputs: Tensor, metric: Metric) -> None:
        metric.update(self.predictions(outputs, batch))

    @abstractmethod
    def predictions(self, outputs: Tensor, batch: dict) -> list[Any]:
        """Return a prediction for each row of a batch."""


class ChoiceModel(HeadModel):
    """Scores every choice of a row by one number; the loss is softmax over the choices."""

    def forward(self, batch: dict) -> Tensor:
        """Map input_ids and attention_mask, [rows, choices, tokens], to float32 scores [rows, choices]."""
        rows = batch["input_ids"].shape[:2]
        inputs = {key: batch[key].flatten(0, 1) for key in ("input_ids", "attention_mask")}
        return self.model(**inputs).logits.float().view(rows)

    def loss(self, outputs: Tensor, batch: dict, *_: Any, **__: Any) -> Tensor:
        return F.cross_entropy(outputs, batch["labels"])

    def predictions(self, outputs: Tensor, batch: dict) -> list[ChoiceScores]:
        columns = (batch[key].tolist() for key in ("labels", "group"))
        return [ChoiceScores(tuple(row), *of) for row, *of in zip(outputs.tolist(), *columns, batch["id"], strict=True)]


class SpanModel(nn.Module):
    """An encoder and a pointer."""

    def __init__(self, encoder: PreTrainedModel, type_: str, kinds: int):
        super().__init__()
        self.encoder = encoder
        self.pointer = POINTERS[type_](encoder.config.hidden_size, kinds)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, allowed: Tensor) -> Tensor:
        """Map the inputs, each [rows, tokens], to float32 scores [rows, kinds, first token, last token]."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self.pointer(hidden, allowed).float()

    def save_pretrained(self, directory: Path) -> None:
        self.encoder.save_pretrained(directory)
        save_file(self.pointer.state_dict(), directory / POINTER)


def load_span_model(directory: Path, type_: str) -> SpanModel:
    """Load the best model of a task of type answer or entities, in evaluation mode.

    The names of its kinds are the encoder's `config.id2label`.

    Raises:
        DataError: the directory has no such head, or its encoder cannot be loaded.
    """
    if not (directory / POINTER).is_file():
        raise DataError(f"{directory}: no {POINTER}; expected the directory of a fine-tuned model of type {type_}")
    encoder = load_theirs(AutoModel, directory, "an encoder", None)
    model = SpanModel(encoder, type_, 1 if type_ == "answer" else encoder.config.num_labels)
    model.pointer.load_state_dict(load_file(directory / POINTER))
    return model.eval()


class AnswerModel(HeadModel):
    """GlobalPointer with one softmax over all spans of a window."""

    def forward(self, batch: dict) -> Tensor:
        return self.model(batch["input_ids"], batch["attention_mask"], batch["allowed"])

    def loss(self, outputs: Tensor, batch: dict, *_: Any, **__: Any) -> Tensor:
        return one_span_loss(outputs, batch["labels"])

    def predictions(self, outputs: Tensor, batch: dict) -> list[WindowAnswer]:
        outputs = outputs.clone()
        outputs[:, :, 0] = -torch.inf  # from [CLS]: no answer
        scores, places = outputs.flatten(1).max(1)
        found = []
        for row, (score, place) in enumerate(zip(scores.tolist(), places.tolist(), strict=True)):
            first, last = divmod(place, outputs.shape[-1])
            start, end = int(batch["offsets"][row, first, 0]), int(batch["offsets"][row, last, 1])
            answers, text = tuple(batch["answers"][row]), batch["text"][row][start:end]
            found.append(WindowAnswer(int(batch["number"][row]), score, text, answers, batch["id"][row]))
        return found


class EntityModel(AnswerModel):
    """EfficientGlobalPointer with a multi-label loss; spans with a score above 0 are predicted."""

    def loss(self, outputs: Tensor, batch: dict, *_: Any, **__: Any) -> Tensor:
        return many_spans_loss(outputs, batch["labels"])

    def predictions(self, outputs: Tensor, batch: dict) -> list[TextEntities]:
        predicted: list[set] = [set() for _ in outputs]
        rows, kinds, first, last = (outputs > 0).nonzero(as_tuple=True)
        starts, ends = batch["offsets"][rows, first, 0], batch["offsets"][rows, last, 1]
        for row, *span in zip(*(of.tolist() for of in (rows, kinds, starts, ends)), strict=True):
            predicted[row].add(tuple(span))
        rights = (frozenset(map(tuple, entities)) for entities in batch["entities"])
        found = map(frozenset, predicted)
        return [TextEntities(*row) for row in zip(found, rights, batch["text"], batch["id"], strict=True)]
