"""The reason for a rollback, and the exception that ends a Trainer for it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Trouble:
    """The reason for a rollback."""

    trigger: str  # the key under `rollback`
    why: str  # the reason, in numbers
    since_token: int  # the trouble began after this token


class RollbackDue(Exception):
    """Raised by `Trainer.fit` on every rank; holds the trouble, and the token at which it was found."""

    def __init__(self, trouble: Trouble, token: int):
        super().__init__(trouble.why)
        self.trouble = trouble
        self.token = token
