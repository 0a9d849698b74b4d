"""Initialise as in bert4keras: truncated normals whose standard deviation is N^-exponent / sqrt(fan-in).

- N is the number of layers. The exponent is 1/2 in the published code (bert4keras ff75758, 2022-03-30) and 0 at the
  release (9c0b262, 2022-03-20). With 1/2, a post-norm model trains without a `residual_scale` below 1: each layer adds
  little at first (kexue.fm/archives/8978).
- The normal is cut off at ±2σ, and σ is 1.13684723 times larger to restore the variance lost by that (archives/8620).
- The fan-in of the two embedding tables is the hidden size. bert4keras decides by a table's size: it would take the
  vocabulary size as the fan-in if that is between 10 and 10,000; the published models have 12,000.
- At first, the variance of the logits is about N^(-2 · exponent), so the masked-LM loss is about ln(vocabulary) + half
  of that variance.
- Each parameter has its own generator, seeded by the seed and its name, so it is the same on any number of ranks.
"""

import math

from torch import Tensor

from rotary_foundry.models.roformer_v2.shape import Shape
from rotary_foundry.models.truncated_normal import parameter_generator, truncated_normal

WIDENING = 1.13684723  # σ of the normal whose standard deviation is 1 after the cut


def initial_value(name: str, shape: Shape, seed: int) -> Tensor:
    """Draw the initial value of a parameter, as specified by `Family.initial_value`."""
    size = shape.parameter_shapes()[name]
    sigma = WIDENING * shape.num_hidden_layers**-shape.init_depth_exponent / math.sqrt(size[1])
    return truncated_normal(size, sigma, parameter_generator(seed, name))
