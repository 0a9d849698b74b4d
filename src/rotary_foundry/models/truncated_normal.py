"""Draw initial weights from a truncated normal, the same on any machine and for any number of ranks."""

import hashlib
import math

import torch
from torch import Tensor, nn

from rotary_foundry.models.transformer_shape import TransformerShape

CUTOFF = 2.0  # in standard deviations of the normal before it is cut


def truncated_normal(size: tuple[int, ...], std: float, generator: torch.Generator) -> Tensor:
    """Draw a float32 tensor on the CPU from a normal that is cut off at ±2 standard deviations.

    Args:
        size: the tensor's shape.
        std: the normal's standard deviation before the cut; the tensor's own is 0.88 times as large.
        generator: this tensor's own generator.
    """
    return nn.init.trunc_normal_(torch.empty(size), std=std, a=-CUTOFF * std, b=CUTOFF * std, generator=generator)


def megatron_value(name: str, shape: TransformerShape, seed: int, std: float, to_residual: tuple[str, ...]) -> Tensor:
    """Draw a parameter's initial value as in Megatron-LM and GPT-2: smaller for projections to the residual stream.

    Args:
        name: the parameter's name in the network's state dict.
        shape: the model's shape.
        seed: the run's seed.
        std: the standard deviation of matrices. Norms begin at 1 and biases at 0.
        to_residual: suffixes of the names of output projections, which have std / sqrt(2 · layers).
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
        seed: the run's seed.
        name: the parameter's name in the network's state dict.
    """
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
