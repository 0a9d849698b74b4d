"""Count the bytes that elementwise kernels of a RoFormerV2 layer move on a GPU, with and without biases and gains.

Nothing is computed: a layer of base size goes forward and backward in eager mode, in bf16 under autocast, without
dropout, on tensors without data. Each operation that is neither a matrix product nor attention is one kernel, which
reads its inputs and writes its outputs once. Where CPU tensors do not show what CUDA does, three rules replace them:

- The bias of a linear layer is added inside the product, as cuBLASLt does for torch, and costs nothing in the forward
  pass. Its gradient is a sum over the tokens: one kernel.
- A norm is one kernel forward and one backward. Gain and offset need one more kernel, which reads the inputs of the
  other one again for their gradients (aten/src/ATen/native/cuda/layer_norm_kernel.cu).
- Attention is the same on both sides and is left out.

A layer's time on an H100 is estimated from the bytes and from the operations of products and attention, at the rates
of predicted.py. Kernel launches are counted as free.
"""

from dataclasses import dataclass, field
from unittest.mock import patch

import torch
from models import add_biases_and_gains, roformer_v2_shape
from predicted import ATTENTION, MEMORY, PRODUCTS
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rotary_foundry.models.roformer_v2 import network

TOKENS = 64 * 512  # a microbatch of the published recipe
NO_TRAFFIC = {"aten::mm", "aten::addmm", "aten::detach", "aten::empty_like"}


@dataclass
class Count:
    kernels: int = 0
    bytes: int = 0

    def add(self, *tensors: Tensor) -> None:
        """Count a kernel that reads or writes these tensors."""
        self.kernels += 1
        self.bytes += sum(tensor.nbytes for tensor in tensors)


@dataclass
class Traffic:
    """Holds kernels and bytes of a layer's forward and backward pass over TOKENS tokens."""

    forward: Count = field(default_factory=Count)
    backward: Count = field(default_factory=Count)

    @property
    def bytes(self) -> int:
        return self.forward.bytes + self.backward.bytes


class Counter(TorchDispatchMode):
    """Counts the operations under it."""

    def __init__(self, count: Count):
        super().__init__()
        self.count = count

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        written = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if written and not function.is_view and function.name().split(".")[0] not in NO_TRAFFIC:
            read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            self.count.add(*read, *written)
        return result


class CountedNorm(nn.Module):
    """Counts a norm as CUDA's kernels compute it, instead of the several operations of a CPU."""

    def __init__(self, has_gain: bool, traffic: Traffic):
        super().__init__()
        self.has_gain, self.traffic = has_gain, traffic

    def forward(self, x: Tensor) -> Tensor:
        return _CountedNorm.apply(x, self.has_gain, self.traffic)


class _CountedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, has_gain: bool, traffic: Traffic) -> Tensor:
        out = torch.empty_like(x)
        traffic.forward.add(x, out)
        ctx.save_for_backward(x)
        ctx.has_gain, ctx.traffic = has_gain, traffic
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        ctx.traffic.backward.add(grad, x, grad_x)
        if ctx.has_gain:
            ctx.traffic.backward.add(grad, x)
        return grad_x, None, None


class _NoAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return torch.empty_like(q, memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in ctx.saved_tensors)


def of_a_layer(biases_and_gains: bool) -> Traffic:
    """Count a layer's kernels and bytes."""
    traffic, shape = Traffic(), roformer_v2_shape("base")
    with (
        FakeTensorMode(),
        patch.object(network, "attention", lambda q, k, v, *_: _NoAttention.apply(q, k, v)),
        torch.autocast("cpu", torch.bfloat16),
    ):
        layer = network.Layer(shape, "auto").eval()  # no dropout
        if biases_and_gains:
            add_biases_and_gains(layer)
        layer.norm = CountedNorm(biases_and_gains, traffic)
        hidden = torch.empty(TOKENS, shape.hidden_size, requires_grad=True)
        rotary = tuple(torch.empty(TOKENS, 1, shape.head_dim, dtype=torch.bfloat16) for _ in range(2))
        scale = torch.ones(())
        with Counter(traffic.forward):
            out = layer(hidden, None, rotary, scale)
        with Counter(traffic.backward):
            out.backward(torch.empty_like(out))
    return traffic


def estimated_seconds(traffic: Traffic, length: int) -> float:
    """Estimate an H100's time for a layer, forward and backward over TOKENS tokens in documents of one length."""
    shape = roformer_v2_shape("base")
    products = shape.matmul_flops(TOKENS, 0) / shape.num_hidden_layers
    attention = shape.attention_flops([length] * (TOKENS // length)) / shape.num_hidden_layers
    return products / PRODUCTS + attention / ATTENTION["FlashAttention 2"] + traffic.bytes / MEMORY
