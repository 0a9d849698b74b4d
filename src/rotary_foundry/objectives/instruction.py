"""Instruction tuning: predict the assistant's turns, and optionally the prompts (arXiv 2309.16039, section 2.2).

Rows have the column `responses`, which is 1 for the tokens of the assistant's turns and 0 for those of prompts. In the
paper, the loss on long prompts helped more than any other choice in its instruction tuning (table 9). ProLong (arXiv
2410.02660) and arXiv 2407.21783 did not use it. So `target_prompts` and its weight are keys. The names are LLM
Foundry's.

The loss is Σ weight · cross entropy / Σ weight over all tokens of an update. With `mean: rows`, the loss is a mean over
each row's tokens and then over rows, so a token of a short answer has more weight than one of a long answer. Accuracy
and the held-out loss count only responses.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rotary_foundry.objectives.causal_lm import CausalLM
from rotary_foundry.objectives.objective import IGNORE_INDEX, Metric, Prepared
from rotary_foundry.utils.knob import Knob, Problem
from rotary_foundry.utils.wording import nearest

if TYPE_CHECKING:
    from torch import nn

    from rotary_foundry.data.corpus import TokenizerFacts
    from rotary_foundry.models.layers.cross_entropy import TokenLoss

AT_LEAST = re.compile(r"length>=[1-9][0-9_]*")
RESPONSES, MEANS = ("all", "last"), ("tokens", "rows")


@dataclass
class Instruction(CausalLM):
    """Predict the assistant's turns of conversations."""

    target_responses: str = "all"  # or last: only the last turn of each conversation
    target_prompts: str = "none"  # or all, or length>=N: the prompts of conversations of at least N tokens
    prompt_loss_weight: float = 1.0  # of a prompt's token; a response's token has 1
    mean: str = "tokens"  # or rows: every row has the same weight

    name: ClassVar[str] = "instruction"
    columns: ClassVar[tuple[str, ...]] = ("responses",)
    weighted: ClassVar[bool] = True
    knobs: ClassVar[Mapping[str, Knob]] = {
        "prompt_loss_weight": Knob("weight of a prompt's token in the loss", includes_low=True)
    }
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("loss", "cross_entropy", "Loss", "nats per token"),
        Metric("response_accuracy", "correct", "Response accuracy", "share of response tokens that were the likeliest"),
    )

    def problems(self) -> Iterator[Problem]:
        if self.target_responses not in RESPONSES:
            yield (
                "target_responses",
                f"'{self.target_responses}' is not known; {nearest(self.target_responses, RESPONSES)}",
            )
        if self.target_prompts not in ("none", "all") and not AT_LEAST.fullmatch(self.target_prompts):
            yield "target_prompts", f"'{self.target_prompts}' is not none, all, or a length such as length>=4096"
        if self.mean not in MEANS:
            yield "mean", f"'{self.mean}' is not known; {nearest(self.mean, MEANS)}"

    def prepare(
        self,
        row: Mapping[str, Any],
        tokenizer: "TokenizerFacts",
        generator: np.random.Generator,
        knobs: Mapping[str, float],
    ) -> Prepared:
        tokens, labels = super().prepare(row, tokenizer, generator, knobs)
        lengths = row["lengths"].astype(np.int64)
        responses = row["responses"].astype(bool)
        if self.target_responses == "last":
            responses = last_responses(responses, lengths)
        prompts = np.repeat(lengths >= self.shortest_prompt, lengths) & (row["responses"] == 0)
        weights = responses + prompts * np.float32(knobs["prompt_loss_weight"])  # [tokens] float32
        weights, scored = np.roll(weights, -1), np.roll(responses, -1) & (labels != IGNORE_INDEX)
        labels[weights == 0] = IGNORE_INDEX
        weights[labels == IGNORE_INDEX] = 0
        if self.mean == "rows" and weights.any():
            weights /= weights.sum()
        return tokens, labels, weights.astype(np.float32), scored

    @property
    def shortest_prompt(self) -> float:
        """Return the shortest length, in tokens, at which a conversation's prompts are predicted; inf: never."""
        if self.target_prompts in ("none", "all"):
            return np.inf if self.target_prompts == "none" else 0
        return int(self.target_prompts.removeprefix("length>="))

    def evaluation_knobs(self) -> dict[str, float]:
        return {"prompt_loss_weight": 0.0}

    def describe(self, knobs: Mapping[str, float]) -> str:
        what = {"all": "every turn of the assistant", "last": "the assistant's last turn"}[self.target_responses]
        prompts = {"none": "", "all": "prompts"}.get(self.target_prompts)
        if prompts is None:
            prompts = f"prompts of conversations of at least {self.shortest_prompt:,} tokens"
        with_prompts = f", and {prompts} with a weight of {knobs['prompt_loss_weight']:g}" if prompts else ""
        return f"Instruction tuning on {what}{with_prompts}; the loss is a mean over {self.mean}."

    def describe_evaluation(self) -> str:
        return "with the assistant's turns predicted"

    def loss(self, network: "nn.Module", batch: Mapping[str, Any]) -> "TokenLoss":
        of_labels = batch["labels"], batch["predicted"], batch.get("weights"), batch.get("scored")
        loss = network(batch["input_ids"], batch["cu_seqlens"], batch["row_length"], *of_labels)
        if "weights" not in batch:  # nothing is predicted
            return loss
        return loss._replace(tokens=sum(batch["row_predicted"]), scored=sum(batch["row_scored"]))


def last_responses(responses: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return which of the response tokens belong to their document's last response. bool [tokens] → bool [tokens]"""
    last = np.zeros_like(responses)
    for start, end in zip(np.cumsum(lengths) - lengths, np.cumsum(lengths), strict=True):
        places = np.flatnonzero(responses[start:end])
        if len(places):
            breaks = np.flatnonzero(np.diff(places) > 1)
            first = places[breaks[-1] + 1] if len(breaks) else places[0]
            last[start + first : start + places[-1] + 1] = True
    return last
