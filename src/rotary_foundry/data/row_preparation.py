"""Prepare a stored row for an objective; the result depends only on the row and its position in the run.

The random generator of a training row is seeded by (run seed, stage, position in the stage). Its knobs are those of the
update that contains this position. So inputs and labels do not depend on how rows are distributed over processes,
workers or microbatches. A row that is drawn a second time gets new randomness, and a scheduled knob has the exact value
of its update.
"""

from dataclasses import dataclass

import numpy as np

from rotary_foundry.data.corpus import TokenizerFacts
from rotary_foundry.objectives.objective import IGNORE_INDEX, Objective, Prepared
from rotary_foundry.recipe.plan import Segment

HELD_OUT = 1 << 31  # replaces the stage when held-out rows are prepared, so that every evaluation prepares them alike


def row_generator(seed: int, stage_index: int, position: int) -> np.random.Generator:
    """Make the generator of the row at `position` of a stage, which is the number of rows drawn before it."""
    return np.random.default_rng((seed, stage_index, position))


@dataclass(frozen=True)
class TrainingPrepared:
    """Prepares the rows of a segment, each with its own generator and with the knobs of its update."""

    objective: Objective
    tokenizer: TokenizerFacts
    seed: int
    segment: Segment

    def __call__(self, sample: dict) -> Prepared:
        generator = row_generator(self.seed, self.segment.stage_index, sample["position"])
        knobs = self.segment.knobs_of_row(sample["position"])
        return self.objective.prepare(sample, self.tokenizer, generator, knobs)


@dataclass(frozen=True)
class HeldOutPrepared:
    """Prepares held-out rows, alike in every evaluation."""

    objective: Objective
    tokenizer: TokenizerFacts
    seed: int

    def __call__(self, sample: dict) -> Prepared:
        generator = row_generator(self.seed, HELD_OUT, sample["row"])
        return self.objective.prepare(sample, self.tokenizer, generator, self.objective.evaluation_knobs())


def nothing_to_predict(sample: dict) -> Prepared:
    """Prepare a row without labels, which no loss and no metric counts."""
    return sample["tokens"].astype(np.int64), np.full(len(sample["tokens"]), IGNORE_INDEX, np.int64)
