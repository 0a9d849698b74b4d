"""How near a step comes to what its arithmetic alone would take on this machine.

The floor is the step's matrix products at the rate of a large bf16 product, plus its attention at the rate of torch's
own SDPA on documents of that length, both measured in the same run. Local layers count the keys that their window
holds, and not those that a block of them computes.
"""

import statistics

import torch
import torch.nn.functional as F
from measure import timed

from encoder_foundry.recipe.schema import ModelConfig

LARGE = 4096  # rows and columns of the large product


def matmul_flops(config: ModelConfig, tokens: int, masked: int) -> float:
    """Floating-point operations of a training step's matrix products, attention's own left out."""
    hidden, inner = config.hidden_size, config.intermediate_size
    layers = config.num_hidden_layers * (4 * hidden**2 + 3 * hidden * inner)
    head = hidden**2 + hidden * config.vocab_size
    return 3 * 2 * (tokens * layers + masked * head)  # forward, and twice as much back


def attention_flops(config: ModelConfig, lengths: list[int]) -> float:
    """The same of its attention: two products forward and five back, over the pairs of tokens that see each other."""
    global_layers = -(-config.num_hidden_layers // config.global_attn_every_n_layers)
    pairs = 0
    for length in lengths:
        pairs += global_layers * length**2
        pairs += (config.num_hidden_layers - global_layers) * _pairs_in_window(length, config.local_attention // 2)
    return 7 * 2 * config.hidden_size * pairs


def product_rate() -> float:
    """Operations a second of a large bf16 product."""
    left, right = torch.randn(2, LARGE, LARGE).bfloat16()
    return 2 * LARGE**3 / statistics.median([timed(lambda: left @ right) for _ in range(7)])


def sdpa_rate(config: ModelConfig, length: int, documents: int) -> float:
    """Operations a second of SDPA forward and back, in bf16, on documents of one length."""
    heads = config.num_attention_heads
    q, k, v, grad = torch.randn(4, documents, heads, length, config.hidden_size // heads).bfloat16()
    for x in (q, k, v):
        x.requires_grad_()
    seconds = [timed(lambda: F.scaled_dot_product_attention(q, k, v).backward(grad)) for _ in range(4)]
    return 7 * 2 * config.hidden_size * documents * length**2 / statistics.median(seconds[1:])


def _pairs_in_window(length: int, reach: int) -> int:
    near = min(reach, length - 1)
    return length + 2 * sum(length - distance for distance in range(1, near + 1))
