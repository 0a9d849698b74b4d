"""Initialisation of a Llama, for runs from scratch; Llama's own was not published.

- Matrices are drawn from a normal of σ = 0.02, which is also transformers' `initializer_range`, cut off at ±2σ. The
  output projections of attention and of SwiGLU have σ = 0.02 / sqrt(2 · layers), as in GPT-2, so that the sum along the
  residual stream keeps its size with depth. The gains of norms begin at 1.
- Each parameter has its own generator, seeded by the seed and its name, so it is the same on any number of ranks.
"""

import math

import torch
from torch import Tensor

from rotary_foundry.models.llama.shape import Shape
from rotary_foundry.models.truncated_normal import parameter_generator, truncated_normal

STD = 0.02


def initial_value(name: str, shape: Shape, seed: int) -> Tensor:
    """Draw the first value of a whole parameter, in float32 on the CPU; the same for the same arguments.

    Args:
        name: as in the network's state dict.
        shape: of the model.
        seed: the run's.
    """
    size = shape.parameter_shapes()[name]
    if name.endswith("norm.weight"):
        return torch.ones(size)
    to_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
    std = STD / math.sqrt(2 * shape.num_hidden_layers) if to_residual else STD
    return truncated_normal(size, std, parameter_generator(seed, name))
