"""The weights of tasks against torchjd on whole tensors, and against what defines them."""

import numpy as np
import pytest
import torch
from torchjd.aggregation import MGDA, PCGrad

from rotary_foundry.optim.task_weights import min_norm_weights, projected_weights, single_weight


def gradients(seed: int, tasks: int, spread: float) -> np.ndarray:
    """Vectors [tasks, 1000] with norms that differ by up to this factor."""
    generator = np.random.default_rng(seed)
    scales = spread ** generator.uniform(-0.5, 0.5, (tasks, 1))
    return scales * generator.standard_normal((tasks, 1000))


CASES = [(seed, tasks, spread) for seed in range(3) for tasks in (1, 2, 3, 8) for spread in (1.1, 10.0)]


@pytest.mark.parametrize(("seed", "tasks", "spread"), CASES)
def test_min_norm_is_the_shortest_vector_of_the_hull_and_torchjds(seed, tasks, spread):
    """Where the minimum lies on the border of the hull, as with norms that differ much, theirs only comes near it."""
    vectors = gradients(seed, tasks, spread)
    weights = min_norm_weights(vectors @ vectors.T)
    assert weights.min() >= 0 and weights.sum() == pytest.approx(1)
    shortest = weights @ vectors
    assert (vectors @ shortest).min() >= shortest @ shortest * (1 - 1e-9)  # holds at the minimum and nowhere else
    theirs = MGDA(epsilon=1e-9, max_iters=300)(torch.from_numpy(vectors)).numpy()
    assert np.linalg.norm(shortest) <= np.linalg.norm(theirs) * (1 + 1e-9)
    if spread == 1.1:
        assert np.linalg.norm(theirs - shortest) <= 1e-5 * np.linalg.norm(shortest)


@pytest.mark.parametrize("seed", range(3))
def test_at_the_output_of_disjoint_inputs_the_shortest_vector_is_torchjds(seed):
    of_tasks = gradients(seed, 8, 1.5)
    weights = np.array([single_weight("min_norm_at_output", 0.25, 2.0, 5.0, np.linalg.norm(one)) for one in of_tasks])
    whole = torch.block_diag(*torch.from_numpy(of_tasks)[:, None])  # [tasks, all tokens × hidden]
    theirs = MGDA(epsilon=1e-9, max_iters=1000)(whole)
    assert torch.linalg.norm(torch.from_numpy(weights / weights.sum()) @ whole - theirs) <= 1e-5 * theirs.norm()


@pytest.mark.parametrize(("seed", "tasks", "spread"), CASES)
def test_projected_is_torchjds_and_the_projection_of_whole_vectors(seed, tasks, spread, monkeypatch):
    vectors = gradients(seed, tasks, spread)
    orders = [np.random.default_rng((seed, task)).permutation(tasks) for task in range(tasks)]
    combined = projected_weights(vectors @ vectors.T, orders) @ vectors
    expected = np.zeros(1000)
    for vector, order in zip(vectors, orders, strict=True):
        part = vector.copy()
        for other in order:
            if not np.array_equal(vectors[other], vector):
                part -= min(0, part @ vectors[other]) / (vectors[other] @ vectors[other]) * vectors[other]
        expected += part
    given = iter(orders)
    monkeypatch.setattr(torch, "randperm", lambda _: torch.from_numpy(next(given)))
    theirs = PCGrad()(torch.from_numpy(vectors)).numpy()
    for other in (expected, theirs):
        assert np.linalg.norm(combined - other) <= 1e-5 * np.linalg.norm(combined)


def test_a_hull_that_contains_zero_gives_zero():
    vectors = np.array([[1.0, 0.0], [-2.0, 0.0], [0.0, 3.0]])
    assert np.linalg.norm(min_norm_weights(vectors @ vectors.T) @ vectors) < 1e-6


def test_weights_that_depend_on_the_task_alone():
    assert [single_weight(combine, 0.25, 2.0, 5.0) for combine in ("mean", "normalised", "loss_scaled")] == [
        *(0.25, 0.5, 0.2)
    ]
    zeros = [("normalised", 0.0, 5.0), ("loss_scaled", 2.0, 0.0), ("min_norm_at_output", 2.0, 5.0)]
    assert [single_weight(combine, 0.25, norm, loss) for combine, norm, loss in zeros] == [0] * 3
