"""Tensors that seem to be on a GPU: shapes, dtypes and devices are real, values and kernels are not there."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor

from rotary_foundry.models.layers import cross_entropy, rotary
from rotary_foundry.optim import gradient_sketch

AMPERE = (8, 0)


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Let tensors be made on a GPU that is not there, under autocast in bf16.

    Whatever needs a value on the host, such as `.item()`, `nonzero()` or a boolean index, raises. On a GPU, the host
    would wait there for all kernels that were started before.
    """
    answers = {
        "torch._subclasses.fake_tensor.init_gpu_context": None,
        "torch.cuda.amp.common.amp_definitely_not_available": False,
        "torch.cuda.is_bf16_supported": True,
        "torch.cuda.get_device_capability": AMPERE,
    }
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch(name, lambda *_, answer=answer, **__: answer))
        stack.enter_context(mock.patch.object(cross_entropy, "_compiled", lambda function: function))  # into no kernels
        stack.enter_context(fake_tensor.FakeTensorMode())
        stack.enter_context(torch.autocast("cuda", torch.bfloat16))
        try:
            yield
        finally:
            rotary._tables.cache_clear()
            gradient_sketch._signs.cache_clear()


def move_there(network: nn.Module) -> None:
    """Move a network's parameters to the GPU of `fake_gpu`."""
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(there(parameter)))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, there(buffer))


def batch_there(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch with its tensors on the GPU of `fake_gpu`."""
    return {key: there(value) if isinstance(value, Tensor) else value for key, value in batch.items()}


def there(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
