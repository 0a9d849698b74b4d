"""Why a run goes back to a checkpoint, and the exception by which a Trainer ends for it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Trouble:
    """Why a run is to go back."""

    trigger: str  # the key under `rollback`
    why: str  # in numbers
    since_token: int  # until here all was well


class RollbackDue(Exception):
    """Raised out of `Trainer.fit` on every rank: what is wrong, and the token at which it was found."""

    def __init__(self, trouble: Trouble, token: int):
        super().__init__(trouble.why)
        self.trouble = trouble
        self.token = token
