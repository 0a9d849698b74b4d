"""Fit the power law of a loss that falls with context: L(c) = (α / c)^β + γ.

For a given β the law is linear in its other parameters: L(c) = drop · (c / first)^-β + γ, where the drop is the loss
above γ at the first, shortest context. So drop and γ solve a small least-squares problem with non-negative values
(scipy's nnls). The search is over β alone; it needs no start value and cannot diverge. α follows from the drop. If a
loss does not fall, the drop is zero and the law has no meaning: α is then zero, and β is NaN.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar, nnls

BETAS = 0.02, 4.0  # a smaller β is indistinguishable from a line in log c, a larger one from a single step
ROUNDING = 1e-6  # the rounding error of a loss in float32: a smaller fall does not count


class Law(NamedTuple):
    """Parameters of the law."""

    alpha: float  # tokens of context at which the reducible part of the loss is one nat
    beta: float
    gamma: float  # nats; the part of the loss that no context reduces

    def __call__(self, context: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the loss at each length of context."""
        return np.full(len(context), self.gamma) if not self.alpha else (self.alpha / context) ** self.beta + self.gamma


def fit(context: NDArray[np.float64], loss: NDArray[np.float64]) -> Law:
    """Fit the law to losses by least squares.

    Args:
        context: [lengths], tokens; at least three lengths, because the law has three parameters.
        loss: [lengths], nats.
    """
    relative = context / context[0]

    def solved(log_beta: float) -> tuple[NDArray[np.float64], float]:
        """Return (drop, γ) for a β, and the residual."""
        return nnls(np.stack([relative ** -np.exp(log_beta), np.ones(len(context))], axis=1), loss)

    log_beta = minimize_scalar(lambda value: solved(value)[1], bounds=np.log(BETAS), method="bounded").x
    (drop, gamma), _ = solved(log_beta)
    if drop < ROUNDING * gamma:
        return Law(0.0, float("nan"), float(gamma))
    beta = float(np.exp(log_beta))
    return Law(float(context[0] * drop ** (1 / beta)), beta, float(gamma))
