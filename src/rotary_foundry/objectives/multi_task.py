"""Multi-task training: labelled tasks, with masked language modelling continued beside them.

It is the second half of the training in kexue.fm/archives/8998, which has 92 tasks from 77 labelled data sets. Each
microbatch has rows of one task. A task is a source of the corpus; its `<task>/task.json` has its kind and labels. Rows
are ordered in blocks of one task (data/block_order.py). So an update has one gradient for each of its tasks, and
`combine` says how to combine them (algorithms/gradient_combination.py).

The loss of a labelled task is a mean over its examples: texts, pairs, multiple-choice questions, windows of an answer.
With `input_noise`, a share of the tokens of labelled inputs is corrupted in pairs of neighbours, as in `masked_encode`
of ZhuiyiTechnology/roformer-v2 (multi-task/snippets.py): 80 % of the pairs become masks, 18 % random tokens, and 2 %
are kept. A pair never contains a special token, so it lies in one part of an example. Held-out rows have no noise.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from rotary_foundry.data.targets import WIDTH, targets_complaint
from rotary_foundry.objectives.masked_lm import MaskedLM
from rotary_foundry.objectives.objective import IGNORE_INDEX, Metric, Prepared
from rotary_foundry.utils.errors import DataError
from rotary_foundry.utils.knob import Knob, Problem
from rotary_foundry.utils.wording import nearest

if TYPE_CHECKING:
    from torch import nn

    from rotary_foundry.data.corpus import TokenizerFacts
    from rotary_foundry.models.layers.cross_entropy import TokenLoss

COMBINE = ("mean", "normalised", "loss_scaled", "min_norm", "min_norm_at_output", "projected")
COMPARES = COMBINE[3:]  # the rules that compare gradients of different tasks
MASKED_PAIRS, RANDOM_PAIRS = 0.8, 0.18  # shares of the chosen pairs; the rest is kept


@dataclass(kw_only=True)
class MultiTask(MaskedLM):
    """Learn several tasks at once; the keys of masked LM apply to its masked-LM tasks."""

    combine: str  # how the gradients of an update's tasks become one
    rows_per_block: int  # consecutive rows of one task; a multiple of the number of processes
    input_noise: float = 0.0  # share of the tokens of labelled inputs that are corrupted

    name: ClassVar[str] = "multi_task"
    knobs: ClassVar[Mapping[str, Knob]] = {
        **MaskedLM.knobs,
        "input_noise": Knob("share of the tokens of labelled inputs that are corrupted", high=1.0, includes_low=True),
    }
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "loss",
            "cross_entropy",
            "Loss",
            "nats per predicted token, in a multi-task stage the mean of its tasks",
        ),
        Metric("examples_right", "correct", "Right", "share of predicted tokens or examples, mean of the tasks"),
    )

    @property
    def block_size(self) -> int:
        return self.rows_per_block

    @property
    def least_blocks(self) -> int:
        return 2 if self.combine in COMPARES else 1

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if self.combine not in COMBINE:
            yield "combine", f"'{self.combine}' is not known; {nearest(self.combine, COMBINE)}"
        if self.rows_per_block < 1:
            yield "rows_per_block", f"{self.rows_per_block} is not positive"

    def prepare(
        self,
        row: Mapping[str, Any],
        tokenizer: "TokenizerFacts",
        generator: np.random.Generator,
        knobs: Mapping[str, float],
    ) -> Prepared:
        task = self.tasks[row["source"]]
        if task.kind == "masked_lm":
            return super().prepare(row, tokenizer, generator, knobs)
        if complaint := targets_complaint(row, task):
            raise DataError(
                f"{row['source']}: row {row['row']} of all tasks' shards has {complaint}; prepare the data again with "
                "`python data_prep CONFIG`"
            )
        tokens = row["tokens"].astype(np.int64)
        if knobs["input_noise"]:
            tokens = with_noise(tokens, knobs["input_noise"], tokenizer, generator)
        targets, allowed = row["targets"].reshape(-1, WIDTH), row.get("allowed", np.zeros(len(tokens), np.uint8))
        return tokens, np.full(len(tokens), IGNORE_INDEX, np.int64), targets, allowed

    def evaluation_knobs(self) -> dict[str, float]:
        return super().evaluation_knobs() | {"input_noise": 0.0}

    def describe(self, knobs: Mapping[str, float]) -> str:
        return (
            f"Multi-task: labelled tasks and masked LM together; the tasks' gradients are combined by {self.combine}."
        )

    def describe_evaluation(self) -> str:
        return f"{super().describe_evaluation()} in tasks of masked LM, and the others as they are"

    def loss(self, network: "nn.Module", batch: Mapping[str, Any]) -> "TokenLoss":
        if self.tasks[batch["row_sources"][0]].kind == "masked_lm":
            return super().loss(network, batch)
        return network.heads.loss(network, batch)  # pyrefly: ignore[missing-attribute]


def with_noise(
    tokens: NDArray[np.int64], share: float, tokenizer: "TokenizerFacts", generator: np.random.Generator
) -> NDArray[np.int64]:
    """Corrupt about this share of the tokens, in pairs of neighbours; special tokens are never corrupted."""
    ordinary = ~np.isin(tokens, list(tokenizer.special_ids.values()))
    chosen = np.flatnonzero(ordinary & (generator.random(len(tokens)) < share))[::2]
    chosen = chosen[ordinary[np.minimum(chosen + 1, len(tokens) - 1)] & (chosen + 1 < len(tokens))]
    fate = generator.random(len(chosen))
    pairs = np.stack([chosen, chosen + 1])  # [2, pairs]
    noisy = tokens.copy()
    noisy[pairs[:, fate < MASKED_PAIRS]] = tokenizer.special_ids["mask_token"]
    randomised = pairs[:, (fate >= MASKED_PAIRS) & (fate < MASKED_PAIRS + RANDOM_PAIRS)]
    noisy[randomised] = generator.integers(tokenizer.vocab_size, size=randomised.shape)
    return noisy
