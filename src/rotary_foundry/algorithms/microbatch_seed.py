"""MicrobatchSeed: seed dropout so that a resumed run repeats its randomness.

Composer restores torch's generators only at the start of an epoch, so a run with dropout that is resumed inside an
epoch would use other random numbers. This algorithm seeds every microbatch from its position in the run, so no state
has to be restored. Acts on BATCH_START and BEFORE_FORWARD.
"""

import numpy as np
import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.utils import dist


class MicrobatchSeed(Algorithm):
    """Seeds torch from (seed, token, rank, microbatch) before every training forward pass."""

    def __init__(self, seed: int):
        self.seed = seed
        self.microbatch = 0

    def match(self, event: Event, state: State) -> bool:
        return event in (Event.BATCH_START, Event.BEFORE_FORWARD)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if event == Event.BATCH_START:
            self.microbatch = 0
            return
        place = (self.seed, state.timestamp.token.value, dist.get_global_rank(), self.microbatch)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> 1))
        self.microbatch += 1
