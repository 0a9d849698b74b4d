"""Cosines from sketches against those of whole gradients, also of gradients with the structure of a layer's."""

import numpy as np
import pytest
import torch

from rotary_foundry.optim.gradient_sketch import LENGTH, Sketcher
from rotary_foundry.optim.task_weights import cosines


def layer_gradients(seed: int, tasks: int, common: float) -> list[dict[torch.Tensor, torch.Tensor]]:
    """Gradients of a matrix, which are nearly of rank one, and of its bias, which one task leaves out."""
    generator = torch.Generator().manual_seed(seed)
    matrix, bias, shared = torch.zeros(1536, 768), torch.zeros(1536), torch.randn(768, generator=generator)
    made = []
    for task in range(tasks):
        inputs = common * shared + torch.randn(768, generator=generator)
        outputs = torch.randn(1536, generator=generator) + 1
        gradient = torch.outer(outputs, inputs) + 0.1 * torch.randn(1536, 768, generator=generator)
        made.append({matrix: gradient} | ({bias: 20 * outputs} if task else {}))
    return made


@pytest.mark.parametrize("common", [0.0, 0.3, 3.0])
def test_cosines_from_sketches_are_within_their_error_of_those_of_whole_gradients(common):
    gradients = layer_gradients(1, 5, common)
    params = list(gradients[1])
    weights = np.array([0.1, 2.0, 0.5, 1.0, 0.3])
    whole = torch.stack(
        [torch.cat([one.get(param, torch.zeros_like(param)).flatten() for param in params]) for one in gradients]
    ).double()
    exact = np.array(cosines((whole @ whole.T).numpy(), weights))
    errors = []
    for update in range(4):
        sketches = torch.stack(list(map(Sketcher(params, (17, update)), gradients))).double()
        errors.append(np.array(cosines((sketches @ sketches.T).numpy(), weights)) - exact)
    assert np.abs(errors).max() < 5 * LENGTH**-0.5
    assert np.sqrt(np.mean(np.square(errors))) < 1.5 * LENGTH**-0.5
    assert len({error.tobytes() for error in errors}) == 4  # each update has errors of its own


def test_a_vector_of_length_zero_has_no_cosine_and_the_only_one_has_one():
    assert cosines(np.diag([4.0, 0.0]), np.array([1.0, 1.0])) == [1.0, None]
