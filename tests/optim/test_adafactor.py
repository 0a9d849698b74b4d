"""AdaFactor against its definition, and against the classes of torch and transformers where they compute the same."""

import numpy as np
import pytest
import torch
import transformers

from rotary_foundry.optim.adafactor import AdaFactor

STEPS = 12


def gradients(*shape: int) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(shape, dtype=torch.float64) * (1 + step % 3) for step in range(STEPS)]


def trained(optimizer_class, start: torch.Tensor, grads: list[torch.Tensor], **settings) -> torch.Tensor:
    parameter = torch.nn.Parameter(start.clone())
    optimizer = optimizer_class([parameter], **settings)
    for grad in grads:
        parameter.grad = grad
        optimizer.step()
    return parameter.detach()


def defined(start: np.ndarray, grads: list[np.ndarray], lr: float, beta1: float, decay: float) -> np.ndarray:
    def size(value):
        return np.sqrt(np.mean(value**2))

    w, m, v = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for step, g in enumerate(grads, 1):
        beta2 = 1 - step**-0.8
        v = beta2 * v + (1 - beta2) * (g**2 + 1e-30)
        u = g / np.sqrt(v)
        u = u / max(1.0, size(u))
        m = beta1 * m + (1 - beta1) * u
        w = w - lr * decay * w - lr * max(size(w), 1e-3) * m
    return w


@pytest.mark.parametrize("shape", [(5,), (4, 3)])
@pytest.mark.parametrize("zero", [False, True])
def test_it_is_its_definition(shape, zero):
    """A parameter of zeros, such as a new bias, moves as if its size were 1e-3."""
    start, grads = torch.randn(shape, dtype=torch.float64) * (not zero), gradients(*shape)
    expected = defined(start.numpy(), [grad.numpy() for grad in grads], 5e-4, 0.9, 0.01)
    ours = trained(AdaFactor, start, grads, lr=5e-4, beta1=0.9, weight_decay=0.01)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-12, atol=1e-15)
    assert not torch.equal(ours, start)


def test_without_momentum_a_vector_moves_as_in_torch_and_transformers():
    start, grads = torch.randn(6, dtype=torch.float64), gradients(6)
    ours = trained(AdaFactor, start, grads, lr=5e-4, beta1=0.0)
    by_torch = trained(torch.optim.Adafactor, start, grads, lr=5e-4, eps=(1e-15, 1e-3))
    theirs = trained(transformers.Adafactor, start, grads, lr=5e-4, relative_step=False, scale_parameter=True)
    torch.testing.assert_close(ours, by_torch, rtol=1e-12, atol=0)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


def test_neither_of_them_can_do_what_was_published():
    """torch's has no momentum, both factor matrices, and transformers' averages steps and not updates."""
    start, grads = torch.randn(4, 3, dtype=torch.float64), gradients(4, 3)
    ours = trained(AdaFactor, start, grads, lr=5e-4, beta1=0.0)
    factored = trained(torch.optim.Adafactor, start, grads, lr=5e-4, eps=(1e-15, 1e-3))
    assert not torch.allclose(ours, factored, rtol=1e-5)
    start, grads = torch.randn(6, dtype=torch.float64), gradients(6)
    settings = {"relative_step": False, "scale_parameter": True, "beta1": 0.9, "lr": 0.2}
    averaged = trained(transformers.Adafactor, start, grads, **settings)
    assert not torch.allclose(trained(AdaFactor, start, grads, lr=0.2, beta1=0.9), averaged, rtol=1e-6)
