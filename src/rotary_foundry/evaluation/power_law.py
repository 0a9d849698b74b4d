"""The law of a loss that falls with context: L(c) = (α / c)^β + γ.

For a given β it is linear in what is left: L(c) = drop · (c / first)^-β + γ, where the drop is what is above γ with the
first, shortest context. So both are the solution of a small problem of least squares in which neither may be negative
(scipy's nnls), and the search is over β alone: it needs no start and cannot diverge. α follows from the drop. Where a
loss does not fall, the drop is zero and the law says nothing: α is then zero, and β is not a number.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar, nnls

BETAS = 0.02, 4.0  # flatter or steeper cannot be told from a line in log c, or from a single step
ROUNDING = 1e-6  # of a loss in float32: less is no fall


class Law(NamedTuple):
    """Parameters of the law."""

    alpha: float  # tokens of context at which the part of the loss that context can take away is one nat
    beta: float
    gamma: float  # nats; what no context takes away

    def __call__(self, context: NDArray[np.float64]) -> NDArray[np.float64]:
        """The loss with so much context."""
        return np.full(len(context), self.gamma) if not self.alpha else (self.alpha / context) ** self.beta + self.gamma


def fit(context: NDArray[np.float64], loss: NDArray[np.float64]) -> Law:
    """The law nearest to some losses, by least squares.

    Args:
        context: [lengths], tokens; three lengths at least, as the law has three parameters.
        loss: [lengths], nats.
    """
    relative = context / context[0]

    def solved(log_beta: float) -> tuple[NDArray[np.float64], float]:
        """(drop, γ) for a β, and how far off the law then is."""
        return nnls(np.stack([relative ** -np.exp(log_beta), np.ones(len(context))], axis=1), loss)

    log_beta = minimize_scalar(lambda value: solved(value)[1], bounds=np.log(BETAS), method="bounded").x
    (drop, gamma), _ = solved(log_beta)
    if drop < ROUNDING * gamma:
        return Law(0.0, float("nan"), float(gamma))
    beta = float(np.exp(log_beta))
    return Law(float(context[0] * drop ** (1 / beta)), beta, float(gamma))
