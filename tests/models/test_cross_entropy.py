"""The fused vocabulary product and cross entropy is torch's, however it is cut into chunks."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from rotary_foundry.models.layers import cross_entropy
from rotary_foundry.models.layers.cross_entropy import _of_chunk, linear_cross_entropy

VOCABULARY, HIDDEN = 300, 32
PEAK = """
import resource, sys, torch
from rotary_foundry.models.layers import cross_entropy
cross_entropy.CHUNK_BYTES, tokens = 1 << 26, int(sys.argv[1])
hidden, weight = torch.randn(tokens, 8, requires_grad=True), torch.randn(262_144, 8, requires_grad=True)
targets = torch.arange(tokens)
cross_entropy.linear_cross_entropy(hidden, weight, None, targets).cross_entropy.backward()
print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def inputs(tokens: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(shape, generator=generator).requires_grad_()
        for shape in ((tokens, HIDDEN), (VOCABULARY, HIDDEN), (VOCABULARY,))
    )
    return hidden, weight, bias, torch.randint(0, VOCABULARY, (tokens,), generator=generator)


@pytest.mark.parametrize("tokens_a_chunk", [1, 7, 40, 1000])
def test_loss_and_gradients_are_those_of_the_whole(monkeypatch, tokens_a_chunk):
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", 4 * tokens_a_chunk * VOCABULARY)
    hidden, weight, bias, targets = inputs(40)
    found = linear_cross_entropy(hidden, weight, bias, targets)
    logits = F.linear(hidden, weight, bias)
    expected = F.cross_entropy(logits, targets, reduction="sum")
    torch.testing.assert_close(found.cross_entropy, expected)
    assert found.correct == (logits.argmax(1) == targets).sum()
    assert found.tokens == 40
    factor = 0.25  # an update's loss is a share of the sum
    gradients = torch.autograd.grad(factor * found.cross_entropy, (hidden, weight, bias))
    torch.testing.assert_close(gradients, torch.autograd.grad(factor * expected, (hidden, weight, bias)))


@pytest.mark.parametrize("tokens_a_chunk", [7, 1000])
def test_weights_of_tokens_are_factors_of_their_losses_and_some_tokens_are_scored(monkeypatch, tokens_a_chunk):
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", 4 * tokens_a_chunk * VOCABULARY)
    hidden, weight, bias, targets = inputs(40)
    token_weights, scored = torch.linspace(0, 2, 40), torch.arange(40) % 3 == 0
    found = linear_cross_entropy(hidden, weight, bias, targets, token_weights, scored)
    logits = F.linear(hidden, weight, bias)
    expected = (token_weights * F.cross_entropy(logits, targets, reduction="none")).sum()
    torch.testing.assert_close(found.cross_entropy, expected)
    assert found.correct == ((logits.argmax(1) == targets) & scored).sum()
    gradients = torch.autograd.grad(found.cross_entropy, (hidden, weight, bias))
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, (hidden, weight, bias)))


def test_an_output_may_have_no_bias():
    hidden, weight, bias, targets = inputs(40)
    found = linear_cross_entropy(hidden, weight, None, targets)
    expected = linear_cross_entropy(hidden, weight, torch.zeros_like(bias), targets)
    torch.testing.assert_close(found, expected)
    gradients = torch.autograd.grad(found.cross_entropy, (hidden, weight))
    torch.testing.assert_close(gradients, torch.autograd.grad(expected.cross_entropy, (hidden, weight)))
    nothing = linear_cross_entropy(hidden[:0], weight, None, targets[:0])
    assert not torch.autograd.grad(nothing.cross_entropy, weight)[0].any()


def test_under_autocast_gradients_are_off_by_the_rounding_of_bf16_only():
    hidden, weight, bias, targets = inputs(64)
    exact = torch.autograd.grad(linear_cross_entropy(hidden, weight, bias, targets).cross_entropy, (hidden, weight))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = linear_cross_entropy(hidden, weight, bias, targets)
    assert rounded.cross_entropy.dtype == torch.float32
    for found, wanted in zip(torch.autograd.grad(rounded.cross_entropy, (hidden, weight)), exact, strict=True):
        assert found.dtype == torch.float32
        assert (found - wanted).norm() / wanted.norm() < 0.02


@pytest.mark.long
def test_with_a_vocabulary_of_262144_memory_does_not_grow_with_the_tokens():
    """A copy of the logits of a microbatch took 16 GB with 150,000 words (asafam/HebrewModernBERT@021bf1c)."""
    peaks = [
        int(subprocess.run([sys.executable, "-c", PEAK, tokens], capture_output=True, check=True).stdout)
        for tokens in ("128", "1024")
    ]
    logits = (1024 - 128) * 262_144 * 4  # bytes
    assert peaks[1] - peaks[0] < logits / 8


def test_no_masked_token_is_a_loss_of_nothing():
    hidden, weight, bias, targets = inputs(0)
    loss = linear_cross_entropy(hidden, weight, bias, targets)
    assert loss.cross_entropy == 0 and loss.tokens == 0
    assert not torch.autograd.grad(loss.cross_entropy, weight)[0].any()


def test_a_second_backward_fails_instead_of_scaling_twice():
    hidden, weight, bias, targets = inputs(5)
    loss = linear_cross_entropy(hidden, weight, bias, targets).cross_entropy
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()


@pytest.mark.parametrize("right", [0, 1])
def test_of_two_words_that_are_alike_likely_only_one_can_be_right(right):
    """In bf16, which has eight bits for a logit, it happens."""
    hidden, weight, bias, _ = inputs(6)
    with torch.no_grad():
        weight[1], bias[1] = weight[0], bias[0]
        hidden.copy_(weight[0] * 10)
    found = linear_cross_entropy(hidden, weight, bias, torch.full((6,), right))
    assert found.correct == (6 if right == 0 else 0)


def test_where_no_gradient_is_wanted_none_is_made(monkeypatch):
    made = []
    monkeypatch.setattr(cross_entropy, "_added", lambda total, part: made.append(part))
    hidden, weight, bias, targets = inputs(5)
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, weight, bias, targets).cross_entropy
    assert not made
    torch.testing.assert_close(loss, F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="sum"))


@pytest.mark.parametrize("weighted", [False, True])
def test_what_is_compiled_for_a_gpu_computes_the_same(weighted):
    """Its kernels add -1 by comparing with the right word, and not by a scatter."""
    torch.manual_seed(0)
    right = torch.randint(300, (7, 1))
    weights, scored = (torch.rand(7, 1), torch.rand(7, 1) < 0.5) if weighted else (None, None)

    def computed(function):
        products = torch.randn(7, 300, generator=torch.Generator().manual_seed(1)).bfloat16()
        return function(products, right, weights, scored, True, True)

    compiled = torch.compile(_of_chunk, backend="aot_eager", fullgraph=True, dynamic=True)
    for ours, eager in zip(computed(compiled), computed(_of_chunk), strict=True):
        torch.testing.assert_close(ours, eager)
