"""Initialisation as ModernBERT's: "full Megatron".

- Weights are drawn from a normal of σ = 0.02 cut off at ±2σ; the output projections, attention's and MLP's Wo, from one
  of 0.02 / sqrt(2 · layers), so that the sum along the residual stream keeps its size with depth. σ is that of the
  normal before it is cut, as in ModernBERT's and transformers' code, so the weights' own is 0.88 σ.
- The head's dense is an input projection, as in ModernBERT's training code; transformers has it as an output one. Norms
  begin at 1, biases at 0; the decoder is tied to the embedding and needs nothing.
- Each parameter has a generator of its own, seeded by the seed and its name. One generator for all would make every
  weight depend on all before it, and nobody could draw a single layer of a model too large to hold.
"""

from torch import Tensor

from rotary_foundry.models.modernbert.shape import Shape
from rotary_foundry.models.truncated_normal import megatron_value

STD = 0.02  # ModernBERT's, as is the cutoff


def initial_value(name: str, shape: Shape, seed: int) -> Tensor:
    """Draw the first value of a parameter, as `Family.initial_value` asks."""
    return megatron_value(name, shape, seed, STD, to_residual=("Wo.weight",))
