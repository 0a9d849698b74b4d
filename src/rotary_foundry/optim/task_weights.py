"""Weight the gradients of an update's tasks. The gradient of the update is their weighted sum.

- `mean`: a task's share of the update's blocks. It is the plain average of ZhuiyiTechnology/roformer-v2.
- `normalised`: 1/‖g‖. The step does not depend on how a loss is scaled or shifted (kexue.fm/archives/8870).
- `loss_scaled`: 1/L, the gradient of log L. It does not depend on how a loss is scaled.
- `min_norm`: the weights of the shortest vector in the hull of the gradients (kexue.fm/archives/8896; MGDA). A small
  step against it raises no task's loss.
- `min_norm_at_output`: minimises an upper bound of that norm, which needs no gradient of parameters (MGDA-UB, arXiv
  1810.04650). With the encoder's output Z, ‖Σ αᵢ·∂Lᵢ/∂θ‖ ≤ ‖∂Z/∂θ‖·‖Σ αᵢ·∂Lᵢ/∂Z‖, and the last factor is minimised.
  The paper's tasks share their inputs. Ours do not: Z is the hidden states of all tokens in the update, each token
  belongs to one task, and so the gradients ∂Lᵢ/∂Z are orthogonal. The minimum then has the weights 1/‖∂Lᵢ/∂Z‖², divided
  by their sum. So this rule balances the tasks, but unlike `min_norm` it cannot see whether they contradict each other.
- `projected`: from each gradient, its component along every other gradient that it contradicts is removed, in random
  order (PCGrad, arXiv 2001.06782). The results are added.

`min_norm` and `projected` need only the Gram matrix.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MOST_STEPS = 100_000
PRECISION = 1e-12  # of inner products, as a share of the largest squared norm


def single_weight(combine: str, share: float, norm: float, loss: float, at_output: float = 0.0) -> float:
    """Return the weight of one task, which does not depend on other tasks; 0 if its divisor is 0.

    Args:
        combine: mean, normalised, loss_scaled; or min_norm_at_output, whose weights the caller must divide by their
            sum.
        share: the task's share of the update's blocks.
        norm: the norm of the shared parameters' gradient.
        loss: the task's loss in the update.
        at_output: norm of the gradient at the encoder's output, up to a factor that all tasks of the update share.
    """
    if combine == "mean":
        return share
    divisor = {"normalised": norm, "loss_scaled": loss, "min_norm_at_output": at_output**2}[combine]
    return 1 / divisor if divisor else 0.0


def min_norm_weights(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weights, not negative and with the sum 1, of the shortest convex combination of vectors.

    It is Frank–Wolfe with pairwise steps (arXiv 1511.05932): weight moves from the vector whose inner product with the
    current combination is largest to the one for which it is smallest. It also reaches a minimum on the border of the
    hull, where plain Frank–Wolfe converges slowly.

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
