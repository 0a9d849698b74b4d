"""Initialise as ModernBERT does: "full Megatron".

- Weights are drawn from a normal of σ = 0.02, cut off at ±2σ. The output projections Wo of attention and MLP have
  σ = 0.02 / sqrt(2 · layers), so that the sum along the residual stream keeps its size with depth. σ is the normal's
  before the cut, as in ModernBERT's and transformers' code; the weights' own standard deviation is 0.88 σ.
- The head's dense layer counts as an input projection, as in ModernBERT's training code; in transformers it counts as
  an output projection. Norms begin at 1, biases at 0. The decoder is tied to the embedding.
- Each parameter has its own generator, seeded by the seed and its name. With one generator, every weight would depend
  on all before it, and a single layer of a model too large for memory could not be drawn.
"""

from torch import Tensor

from rotary_foundry.models.modernbert.shape import Shape
from rotary_foundry.models.truncated_normal import megatron_value

STD = 0.02  # ModernBERT's, as is the cutoff


def initial_value(name: str, shape: Shape, seed: int) -> Tensor:
    """Draw the initial value of a parameter, as specified by `Family.initial_value`."""
    return megatron_value(name, shape, seed, STD, to_residual=("Wo.weight",))
