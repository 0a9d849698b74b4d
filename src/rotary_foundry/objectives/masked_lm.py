"""Masked-LM corruption of one row, by a generator that knows nothing but the row's place in the run.

BERT's scheme: of the chosen tokens most become [MASK], some a random token, the rest stay. Special tokens are never
chosen. The generator is seeded by (run seed, stage, position in the stage), so masks do not depend on how rows are
spread over processes, workers or microbatches, and a row drawn again is masked anew.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IGNORE_INDEX = -100  # torch's label of a position that is not to be predicted


@dataclass(frozen=True)
class Masking:
    """How to corrupt rows.

    `probability` is the share of tokens to predict, `mask_share` and `random_share` are shares of those;
    `special_ids` are never chosen.
    """

    probability: float
    mask_share: float
    random_share: float
    mask_id: int
    special_ids: tuple[int, ...]
    vocab_size: int

    def apply(
        self, tokens: NDArray[np.int64], generator: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(input ids, labels), each int64 [tokens]; labels are IGNORE_INDEX where nothing is to be predicted."""
        chosen = (generator.random(len(tokens)) < self.probability) & ~np.isin(tokens, self.special_ids)
        fate = generator.random(len(tokens))
        masked = chosen & (fate < self.mask_share)
        randomised = chosen & (fate >= self.mask_share) & (fate < self.mask_share + self.random_share)
        input_ids = np.where(masked, self.mask_id, tokens)
        input_ids[randomised] = generator.integers(self.vocab_size, size=int(randomised.sum()))
        return input_ids, np.where(chosen, tokens, IGNORE_INDEX)


def row_generator(seed: int, stage_index: int, position: int) -> np.random.Generator:
    """The generator of the row at `position` (rows drawn before it in the stage) of a stage."""
    return np.random.default_rng((seed, stage_index, position))
