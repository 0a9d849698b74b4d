"""Initialisation of a Llama, for runs from scratch; Llama's own was not published.

- Matrices are drawn from a normal of σ = 0.02, which is also transformers' `initializer_range`, cut off at ±2σ. The
  output projections of attention and of SwiGLU have σ = 0.02 / sqrt(2 · layers), as in GPT-2, so that the sum along the
  residual stream keeps its size with depth. The gains of norms begin at 1.
- Each parameter has its own generator, seeded by the seed and its name, so it is the same on any number of ranks.
"""

from torch import Tensor

from rotary_foundry.models.llama.shape import Shape
from rotary_foundry.models.truncated_normal import megatron_value

STD = 0.02


def initial_value(name: str, shape: Shape, seed: int) -> Tensor:
    """Draw the initial value of a parameter, as specified by `Family.initial_value`."""
    return megatron_value(name, shape, seed, STD, to_residual=("o_proj.weight", "down_proj.weight"))
