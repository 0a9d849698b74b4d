"""Weight the gradients of an update's tasks. The gradient of the update is their weighted sum.

- `mean`: a task's share of the update's blocks. It is the plain average of ZhuiyiTechnology/roformer-v2.
- `normalised`: 1/‖g‖. The step does not depend on how a loss is scaled or shifted (kexue.fm/archives/8870).
- `loss_scaled`: 1/L, the gradient of log L. It does not depend on how a loss is scaled.
- `min_norm`: the weights of the shortest vector in the hull of the gradients (kexue.fm/archives/8896; MGDA). A small
  step against it raises no task's loss.
- `projected`: each gradient loses its part along every other one that it contradicts, in a random order (PCGrad, arXiv
  2001.06782), and the results are added.

The last two need only the Gram matrix.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MOST_STEPS = 100_000
PRECISION = 1e-12  # of inner products, as a share of the largest squared norm


def single_weight(combine: str, share: float, norm: float, loss: float) -> float:
    """Return the weight that depends on the task alone; 0 if its gradient or its loss is 0.

    Args:
        combine: mean, normalised or loss_scaled.
        share: of the update's blocks.
        norm: of the gradient of the shared parameters.
        loss: the task's, in the update.
    """
    if combine == "mean":
        return share
    divisor = norm if combine == "normalised" else loss
    return 1 / divisor if divisor else 0.0


def min_norm_weights(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weights, not negative and with the sum 1, of the shortest convex combination of vectors.

    It is Frank–Wolfe with pairwise steps (arXiv 1511.05932): weight moves from the vector that lies furthest along the
    present combination to the one that lies least along it. It reaches the minimum also on the border of the hull, near
    which plain Frank–Wolfe hardly moves.

    Args:
        gram: [tasks, tasks], the inner products.
    """
    weights = np.full(len(gram), 1 / len(gram))
    for _ in range(MOST_STEPS):
        along = gram @ weights
        to, away = int(np.argmin(along)), int(np.argmax(np.where(weights > 0, along, -np.inf)))
        gap = along[away] - along[to]
        if not gap > PRECISION * gram.diagonal().max():  # also for NaN
            break
        step = min(weights[away], gap / (gram[to, to] + gram[away, away] - 2 * gram[to, away]))
        weights[to] += step
        weights[away] = max(0.0, weights[away] - step)
    return weights


def projected_weights(gram: NDArray[np.float64], orders: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """Return the weights of the sum of the projected vectors.

    Args:
        gram: [tasks, tasks], the inner products.
        orders: for each task, the order in which the others are looked at.
    """
    parts = np.eye(len(gram))
    for task, order in enumerate(orders):
        for other in order:
            along = gram[other] @ parts[task]
            if other != task and along < 0:
                parts[task, other] -= along / gram[other, other]
    return parts.sum(axis=0)


def cosines(gram: NDArray[np.float64], weights: NDArray[np.float64]) -> list[float | None]:
    """Return the cosine of each vector with the weighted sum of all; None if one of the two is 0.

    Args:
        gram: [tasks, tasks], the inner products.
        weights: [tasks].
    """
    lengths = np.sqrt(gram.diagonal()) * np.sqrt(max(0.0, weights @ gram @ weights))
    return [float(along / both) if both else None for along, both in zip(gram @ weights, lengths, strict=True)]
