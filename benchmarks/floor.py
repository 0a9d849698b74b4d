"""Compare a step's time with its floor, the time that its arithmetic alone would take on this machine.

The floor is the time of the step's matrix products at the rate of a large product, plus that of its attention at the
rate of torch's own SDPA on documents of that length. Both rates are measured in the same run and in the precision of
the step. Local layers count the keys in their window, not those that a block computes. models/modernbert/shape.py says
what is counted for both.
"""

import statistics

import torch
import torch.nn.functional as F
from measure import timed
from models import DTYPE

from rotary_foundry.models.modernbert.shape import Shape

LARGE = 4096  # rows and columns of the large product


def product_rate() -> float:
    """Return the operations per second of a large product."""
    left, right = torch.randn(2, LARGE, LARGE).to(DTYPE)
    return 2 * LARGE**3 / statistics.median([timed(lambda: left @ right) for _ in range(7)])


def sdpa_rate(shape: Shape, length: int, documents: int) -> float:
    """Return the operations per second of SDPA, forward and backward, on documents of one length."""
    heads = shape.num_attention_heads
    q, k, v, grad = torch.randn(4, documents, heads, length, shape.hidden_size // heads).to(DTYPE)
    for x in (q, k, v):
        x.requires_grad_()
    seconds = [timed(lambda: F.scaled_dot_product_attention(q, k, v).backward(grad)) for _ in range(4)]
    return shape.attention_flops_of_pairs(documents * length**2) / statistics.median(seconds[1:])
