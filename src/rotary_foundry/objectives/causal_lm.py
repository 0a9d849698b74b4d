"""Causal language modelling: predict each token of a document from the tokens before it.

The last token of a document has no label, so a document's first token is never predicted. This also holds without the
document mask, as in ProLong (arXiv 2410.02660): with and without it, a model is measured on the same tokens. The first
token is the same for every document, so predicting it would only lower the mean loss.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rotary_foundry.objectives.objective import IGNORE_INDEX, Metric, Objective, Prepared
from rotary_foundry.utils.knob import Problem

if TYPE_CHECKING:
    from rotary_foundry.data.corpus import TokenizerFacts


@dataclass
class CausalLM(Objective):
    """Predict the next token."""

    document_mask: bool = True  # a token attends to its own document; false: to all tokens before it in the row

    name: ClassVar[str] = "causal_lm"
    causal: ClassVar[bool] = True
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("loss", "cross_entropy", "Loss", "nats per token"),
        Metric("accuracy", "correct", "Accuracy", "share of tokens that were the likeliest"),
    )
    task: ClassVar[str] = "text-generation"

    def problems(self) -> Iterator[Problem]:
        yield from ()

    def prepare(
        self,
        row: Mapping[str, Any],
        tokenizer: "TokenizerFacts",
        generator: np.random.Generator,
        knobs: Mapping[str, float],
    ) -> Prepared:
        tokens = row["tokens"].astype(np.int64)
        labels = np.roll(tokens, -1)
        labels[np.cumsum(row["lengths"], dtype=np.int64) - 1] = IGNORE_INDEX
        return tokens, labels

    def evaluation_knobs(self) -> dict[str, float]:
        return {}

    def describe(self, knobs: Mapping[str, float]) -> str:
        context = "its document" if self.document_mask else "its row, other documents included"
        return f"Causal LM: each token but a document's first is predicted from those before it in {context}."

    def describe_evaluation(self) -> str:
        return "with every token but a document's first predicted"
