"""Draw first weights from a truncated normal, the same on any machine and for any number of ranks."""

import hashlib
import math

import torch
from torch import Tensor, nn

from rotary_foundry.models.transformer_shape import TransformerShape

CUTOFF = 2.0  # in standard deviations of the normal before it is cut


def truncated_normal(size: tuple[int, ...], std: float, generator: torch.Generator) -> Tensor:
    """Draw a float32 tensor on the CPU from a normal that is cut off at ±2 standard deviations.

    Args:
        size: of the tensor.
        std: of the normal before it is cut; that of the tensor is 0.88 times as large.
        generator: of this tensor.
    """
    return nn.init.trunc_normal_(torch.empty(size), std=std, a=-CUTOFF * std, b=CUTOFF * std, generator=generator)


def megatron_value(name: str, shape: TransformerShape, seed: int, std: float, to_residual: tuple[str, ...]) -> Tensor:
    """Draw the first value of a parameter as Megatron-LM and GPT-2 do: less for what is added to the residual stream.

    Args:
        name: as in the network's state dict.
        shape: of the model.
        seed: the run's.
        std: of matrices. Norms begin at 1 and biases at 0.
        to_residual: how the names of output projections end; they have std / sqrt(2 · layers).
    """
    size = shape.parameter_shapes()[name]
    if name.endswith("norm.weight"):
        return torch.ones(size)
    if name.endswith("bias"):
        return torch.zeros(size)
    std = std / math.sqrt(2 * shape.num_hidden_layers) if name.endswith(to_residual) else std
    return truncated_normal(size, std, parameter_generator(seed, name))


def parameter_generator(seed: int, name: str) -> torch.Generator:
    """Return a parameter's own generator, so that no weight depends on which others were drawn before it.

    Args:
        seed: the run's.
        name: the parameter's, in the network's state dict.
    """
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
