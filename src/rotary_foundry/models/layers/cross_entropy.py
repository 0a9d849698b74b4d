"""Compute the logits and their cross entropy in one function, one chunk of tokens at a time.

With 50,368 words, the logits of a microbatch and the copies that softmax makes would be the largest tensors of a step,
several times the activations of a layer. Here only the logits of one chunk are in memory. Their gradients are computed
in the same pass and later only scaled, as in Liger-Kernel. Chunks of the vocabulary instead of tokens would need even
less memory, but would compute every logit twice: once more for the normaliser.

Liger-Kernel's function does not run on CPU and takes no token weights (its issue 338), which instruction tuning needs.
torch's `linear_cross_entropy` takes no weights either, and does not count the correctly predicted tokens.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rotary_foundry.models.layers.autocast import compute_dtype

# The size of a chunk's logits, in float32 on a CPU. A GPU makes no float32 copy, so a bfloat16 chunk has twice the
# tokens there. Every chunk adds to the gradient of the whole embedding, so fewer chunks are better.
CHUNK_BYTES = 1 << 28


class TokenLoss(NamedTuple):
    """Sums over predicted tokens, which add up over microbatches and ranks."""

    cross_entropy: Tensor  # [] float32, nats; with token weights, the sum of weight × cross entropy
    correct: Tensor  # [] int64, the tokens whose likeliest word is the right one
    tokens: float  # the number of predicted tokens, or the sum of their weights
    scored: int | None = None  # the tokens that `correct` counts; None: all

    def count(self, field: str) -> float:
        """Return the divisor that turns a field's sum into its mean."""
        return self.tokens if self.scored is None or field == "cross_entropy" else self.scored


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    token_weights: Tensor | None = None,
    scored: Tensor | None = None,
) -> TokenLoss:
    """Sum the cross entropy of `softmax(hidden @ weight.T + bias)`; under autocast the products are in its dtype.

    Args:
        hidden: [predicted, hidden]
        weight: [vocabulary, hidden]
        bias: [vocabulary], or None for an output without one
        targets: [predicted] int64
        token_weights: [predicted] float32, each token's weight in the sum; None: 1. `tokens` is still their number.
        scored: [predicted] bool, the tokens that `correct` counts; None: all
    """
    # read here: inside the function, grad mode is off, and needs_input_grad depends on the tensors alone
    differentiate = torch.is_grad_enabled()
    dtype = compute_dtype(hidden)
    sums = _LinearCrossEntropy.apply(hidden, weight, bias, targets, dtype, differentiate, token_weights, scored)
    return TokenLoss(*sums, len(targets))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        dtype: torch.dtype,
        differentiate: bool,
        token_weights: Tensor | None,
        scored: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(hidden.device.type, enabled=False):
            words, offsets = weight.to(dtype), None if bias is None else bias.to(dtype)
            differentiate = differentiate and any(ctx.needs_input_grad)
            d_hidden = torch.empty_like(hidden)
            d_weight = d_bias = None
            total = torch.zeros((), dtype=torch.float32, device=hidden.device)
            correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
            itemsize = dtype.itemsize if hidden.is_cuda else torch.float32.itemsize
            chunk = max(1, CHUNK_BYTES // (itemsize * len(weight)))
            of_chunk = _compiled(_of_chunk) if hidden.is_cuda else _of_chunk
            for start in range(0, len(hidden), chunk):
                here = slice(start, start + chunk)
                rows, right = hidden[here].to(dtype), targets[here].unsqueeze(1)
                products = rows @ words.T if offsets is None else torch.addmm(offsets, rows, words.T)
                weights, counted = (
                    None if each is None else each[here].unsqueeze(1) for each in (token_weights, scored)
                )
                loss, hits, d_logits, d_offsets = of_chunk(
                    products, right, weights, counted, differentiate, differentiate and bias is not None
                )
                total += loss
                correct += hits
                if d_offsets is not None:
                    d_bias = _added(d_bias, d_offsets)
                if d_logits is not None:
                    d_hidden[here] = d_logits @ words
                    d_weight = _added(d_weight, d_logits.T @ rows)
        if d_weight is None:  # nothing is predicted, or no gradient is needed
            d_hidden, d_weight = torch.zeros_like(hidden), torch.zeros_like(weight)
            d_bias = None if bias is None else torch.zeros_like(bias)
        ctx.gradients = [d_hidden, d_weight, d_bias] if differentiate else None
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        ctx.mark_non_differentiable(correct)
        return total, correct

    @staticmethod
    def backward(ctx: Any, d_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("this loss can be differentiated once only: its gradients are scaled in place")
        scaled = (
            None if gradient is None else gradient.mul_(d_total).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        )
        return *scaled, None, None, None, None, None


def _of_chunk(
    products: Tensor, right: Tensor, weights: Tensor | None, scored: Tensor | None, differentiate: bool, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Compute a chunk's loss, hits and gradients from its logits.

    On a GPU it is compiled: the kernels read the logits and write their gradients without a copy in float32. According
    to inductor's code, they move 0.54 GB for 1,332 tokens and 50,368 words (benchmarks/gpu_code.py); never run.

    Args:
        products: [chunk, vocabulary], the logits.
        right: [chunk, 1] int64, the targets.
        weights, scored: [chunk, 1], as for `linear_cross_entropy`.

    Returns:
        the sum of the losses, the number of hits, and if asked for, the gradients of the logits and of the bias
    """
    logits = products.float()  # [chunk, vocabulary]
    (highest, likeliest), of_right = logits.max(dim=1, keepdim=True), logits.gather(1, right)
    probabilities = logits.sub_(highest).exp_()
    normaliser = probabilities.sum(dim=1, keepdim=True)
    losses = normaliser.log() + highest - of_right
    hits = likeliest == right  # not of_right == highest: in bf16 several words may share the highest logit
    if weights is not None:
        losses *= weights
    if scored is not None:
        hits &= scored
    d_logits = d_bias = None
    if differentiate:
        d_logits = probabilities.div_(normaliser)
        if torch.compiler.is_compiling():  # an indexed add would be a separate kernel
            d_logits = d_logits - (torch.arange(d_logits.shape[1], device=right.device) == right).float()
        else:
            d_logits.scatter_add_(1, right, torch.full_like(of_right, -1.0))
        if weights is not None:
            d_logits = d_logits.mul_(weights)
        if has_bias:
            d_bias = d_logits.sum(dim=0)
        d_logits = d_logits.to(products.dtype)
    return losses.sum(), hits.sum(), d_logits, d_bias


@cache
def _compiled(function: Callable) -> Callable:
    """Compile a function once per process, for any number of tokens."""
    return torch.compile(function, dynamic=True)


def _added(total: Tensor | None, part: Tensor) -> Tensor:
    """Add `part` in place to `total`, which is in float32, and return it."""
    return part.float() if total is None else total.add_(part)
