"""How near a step comes to what its arithmetic alone would take on this machine.

The floor is the step's matrix products at the rate of a large product, plus its attention at the rate of torch's own
SDPA on documents of that length, both measured in the same run and in the precision of the step. Local layers count the
keys that their window holds, and not those that a block of them computes. What is counted, for both, is said in
models/modernbert/shape.py.
"""

import statistics

import torch
import torch.nn.functional as F
from measure import timed
from models import DTYPE

from rotary_foundry.models.modernbert.shape import Shape

LARGE = 4096  # rows and columns of the large product


def product_rate() -> float:
    """Operations a second of a large product."""
    left, right = torch.randn(2, LARGE, LARGE).to(DTYPE)
    return 2 * LARGE**3 / statistics.median([timed(lambda: left @ right) for _ in range(7)])


def sdpa_rate(shape: Shape, length: int, documents: int) -> float:
    """Operations a second of SDPA forward and back on documents of one length."""
    heads = shape.num_attention_heads
    q, k, v, grad = torch.randn(4, documents, heads, length, shape.hidden_size // heads).to(DTYPE)
    for x in (q, k, v):
        x.requires_grad_()
    seconds = [timed(lambda: F.scaled_dot_product_attention(q, k, v).backward(grad)) for _ in range(4)]
    return shape.attention_flops_of_pairs(documents * length**2) / statistics.median(seconds[1:])
