"""The interface of a training objective, and the table of objectives.

An objective is one file. A recipe names it under `objective:`, and a stage may name another. To add one, write the file
and add a line to OBJECTIVES. The loader prepares rows in numpy, with a generator that depends only on the row's
position in the run. The digests in `metrics.jsonl` are those of prepared rows. No objective imports torch.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from rotary_foundry.data.task_file import Task
from rotary_foundry.utils.knob import Knob, Problem

if TYPE_CHECKING:
    from torch import nn

    from rotary_foundry.data.corpus import TokenizerFacts
    from rotary_foundry.models.layers.cross_entropy import TokenLoss

OBJECTIVES = {
    "masked_lm": "rotary_foundry.objectives.masked_lm:MaskedLM",
    "causal_lm": "rotary_foundry.objectives.causal_lm:CausalLM",
    "instruction": "rotary_foundry.objectives.instruction:Instruction",
    "multi_task": "rotary_foundry.objectives.multi_task:MultiTask",
}

IGNORE_INDEX = -100  # torch's label of a position that is not to be predicted
# Input ids and labels, each [tokens]. A row of a labelled task has two more arrays: `targets` [targets, 4] as in
# data/task_file.py, and `allowed` [tokens], 1 where a span may lie. With weighted labels there are two others instead:
# the weights, [tokens] float32, and the labels that the accuracy counts, [tokens] bool.
Prepared = tuple[NDArray, ...]


@dataclass(frozen=True)
class Metric:
    """A mean over predicted tokens."""

    name: str  # in records, charts and cards
    field: str  # the sum in TokenLoss from which the mean is computed
    title: str
    meaning: str


class Objective(ABC):
    """Defines a training objective: it makes inputs and labels of a row, and computes a network's loss on them.

    A subclass is a dataclass whose fields are the keys under `objective:` in a recipe. A knob is a field too: its value
    holds in every stage that does not set it.
    """

    name: ClassVar[str]
    causal: ClassVar[bool]
    """True if the objective needs a network that attends only to earlier tokens; false: one that attends to all."""
    knobs: ClassVar[Mapping[str, Knob]] = {}
    columns: ClassVar[tuple[str, ...]] = ()
    """The columns that a row needs in addition to `tokens` and `lengths`. A key of a data YAML adds them."""
    special_tokens: ClassVar[tuple[str, ...]] = ()
    """The roles that the tokenizer must have in addition to those of every document, such as "mask_token"."""
    document_mask: bool = True
    """True: a token attends to its own document only. False: to all documents of its row."""
    tasks: ClassVar[Mapping[str, Task]] = {}
    """The tasks of a multi-task stage, by source; `open_objective` sets them. Other objectives have none."""
    weighted: ClassVar[bool] = False
    """True if `prepare` gives each label a weight in the loss."""
    metrics: ClassVar[tuple[Metric, ...]]
    task: ClassVar[str]
    """Hugging Face's name for the task of the trained model (`pipeline_tag`)."""

    @abstractmethod
    def problems(self) -> Iterator[Problem]:
        """Yield (key, complaint) for every unsupported value; knobs are checked by their own bounds."""

    @abstractmethod
    def prepare(
        self,
        row: Mapping[str, Any],
        tokenizer: "TokenizerFacts",
        generator: np.random.Generator,
        knobs: Mapping[str, float],
    ) -> Prepared:
        """Make input ids and labels of a stored row; labels are IGNORE_INDEX where nothing is to be predicted.

        Args:
            row: `tokens` [tokens], `lengths` [documents], and `columns`.
            tokenizer: the tokenizer of the rows.
            generator: the row's own generator.
            knobs: the values at the row's position in the run.
        """

    @abstractmethod
    def evaluation_knobs(self) -> dict[str, float]:
        """Return the knobs that held-out rows are prepared with."""

    @abstractmethod
    def describe(self, knobs: Mapping[str, float]) -> str:
        """Return a sentence for a model card."""

    @abstractmethod
    def describe_evaluation(self) -> str:
        """Return how held-out rows are measured, to follow "On held-out rows"."""

    @property
    def block_size(self) -> int | None:
        """The rows per block, all of one task; None if the objective is not multi-task."""
        return None

    @property
    def least_blocks(self) -> int:
        """The least number of blocks per update."""
        return 1

    @property
    def weights(self) -> dict[str, float] | None:
        """The weight of each task, by source, in a stage without a mixture; None if the objective is not multi-task."""
        return {name: task.weight for name, task in self.tasks.items()} or None

    def predicted_share(self, knobs: Mapping[str, float]) -> float:
        """Return the share of tokens whose logits a training step computes."""
        return 1.0

    def loss(self, network: "nn.Module", batch: Mapping[str, Any]) -> "TokenLoss":
        """Compute the loss of a flat batch as sums over its predicted tokens, so that they add up over microbatches."""
        of_labels = batch["labels"], batch["predicted"]
        return network(batch["input_ids"], batch["cu_seqlens"], batch["row_length"], *of_labels)
