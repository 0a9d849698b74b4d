"""Make batches of the rows from `span_encoding.py` for the models of `head_models.py`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rotary_foundry.data_prep.labelled.span_encoding import NOWHERE


@dataclass(frozen=True)
class HeadCollate:
    """Pads the rows of a task to the longest, and converts all numbers to tensors.

    Args:
        type: the task's type: choice, answer or entities.
        padding: the id of the padding token.
        kinds: number of kinds of entities.
    """

    type: str
    padding: int
    kinds: int = 0

    def __call__(self, rows: list[dict]) -> dict[str, Any]:
        batch: dict[str, Any] = {key: [row[key] for row in rows] for key in rows[0]}
        texts = batch["input_ids"]
        if self.type == "choice":
            texts = [tokens for choices in texts for tokens in choices]
        batch["input_ids"] = _padded(texts, self.padding)
        batch["attention_mask"] = _padded([[1] * len(tokens) for tokens in texts], 0)
        if self.type == "choice":
            for key in ("input_ids", "attention_mask"):
                batch[key] = batch[key].unflatten(0, (len(rows), -1))  # [rows, choices, tokens]
            batch |= {key: torch.tensor(batch[key]) for key in ("labels", "group")}
            return batch
        batch["allowed"] = _padded(batch["allowed"], 0).bool()
        if "offsets" in batch:
            batch["offsets"] = _padded(batch["offsets"], NOWHERE[0])  # [rows, tokens, 2]
        if self.type == "entities":
            batch["labels"] = self._spans(batch["labels"], batch["input_ids"].shape[1])
        elif "labels" in batch:
            batch["labels"] = torch.tensor(batch["labels"])
        return batch

    def _spans(self, labels: Sequence[Sequence[Sequence[int]]], tokens: int) -> Tensor:
        """Return a mask of the entities' spans: [rows, kinds, tokens, tokens] bool."""
        spans = torch.zeros(len(labels), self.kinds, tokens, tokens, dtype=torch.bool)
        for row, entities in enumerate(labels):
            for kind, first, last in entities:
                spans[row, kind, first, last] = True
        return spans


def _padded(rows: Sequence[Sequence], value: int) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)
