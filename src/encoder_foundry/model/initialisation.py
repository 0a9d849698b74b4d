"""Initialisation as ModernBERT's: "full Megatron".

- Weights are drawn from a normal of σ = 0.02 cut off at ±2σ; the output projections, attention's and MLP's Wo, from one
  of 0.02 / sqrt(2 · layers), so that the sum along the residual stream keeps its size with depth. σ is that of the
  normal before it is cut, as in ModernBERT's and transformers' code, so the weights' own is 0.88 σ.
- The head's dense is an input projection, as in ModernBERT's training code; transformers has it as an output one. Norms
  begin at 1, biases at 0; the decoder is tied to the embedding and needs nothing.
- Each parameter has a generator of its own, seeded by the seed and its name. One generator for all would make every
  weight depend on all before it, and nobody could draw a single layer of a model too large to hold.
"""

import hashlib
import math

import torch
from torch import nn

from encoder_foundry.model.masked_lm import MaskedLM

STD = 0.02  # ModernBERT's, as is the cutoff
CUTOFF = 2.0  # in standard deviations


@torch.no_grad()
def initialise(network: MaskedLM, seed: int) -> None:
    """Set every parameter, in place; the same values for the same seed, shape and name, on any device."""
    output_std = STD / math.sqrt(2 * network.config.num_hidden_layers)
    for name, parameter in network.named_parameters():
        if name.endswith("norm.weight"):
            parameter.fill_(1.0)
        elif name.endswith("bias"):
            parameter.zero_()
        else:
            std = output_std if name.endswith("Wo.weight") else STD
            digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
            values = torch.empty(parameter.shape)
            nn.init.trunc_normal_(values, std=std, a=-CUTOFF * std, b=CUTOFF * std, generator=generator)
            parameter.copy_(values)
