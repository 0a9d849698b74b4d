"""Predict the time of a microbatch of ModernBERT on an H100, from counts made on a machine without one.

The time is a sum: products and attention by their operations, elementwise kernels and the loss by the bytes that they
move, and a rest. The rates and the rest are assumed; no time was measured.

- LAYER has the units that a layer moves; a unit is the bytes of all tokens' hidden states in bf16. CHUNK has the bytes
  of 1,332 tokens of the loss. `python benchmarks gpu_code` counts both, and tests/models/test_gpu_code.py compares.
- A query in a layer with a window of 128 tokens costs 384 keys, since kernels compute whole blocks of 128.
- Rows are full, and each is one document, which is the upper bound of attention.

    python benchmarks predicted
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from rotary_foundry.models.layers.cross_entropy import CHUNK_BYTES
from rotary_foundry.models.modernbert.shape import Shape
from rotary_foundry.recipe.cost import PEAK_FLOPS
from rotary_foundry.runs.recipes import load_recipe

PRODUCTS, MEMORY = 550e12, 2.6e12  # operations and bytes per second
ATTENTION = {"FlashAttention 2": 300e12, "FlashAttention 3": 420e12}  # operations per second
LOCAL_KEYS = 384
LAYER = {("base", "eager"): 139.0, ("base", "compiled"): 61.8, ("large", "eager"): 158.8, ("large", "compiled"): 71.0}
CHUNK = {"eager": 3.22e9, "compiled": 0.54e9}
CHUNK_TOKENS = 1332
MASKED = 0.3
REST = 0.010  # seconds: the embedding, the last norm, copies made by the sharding


@dataclass(frozen=True)
class Prediction:
    """Holds the parts of a microbatch's time, in seconds."""

    products: float
    attention: float
    elementwise: float
    loss: float  # without its products, which are in `products`
    tokens: int
    flops: float  # of the model, as for MFU

    @property
    def seconds(self) -> float:
        return self.products + self.attention + self.elementwise + self.loss + REST

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def mfu(self) -> float:
        return self.flops / self.seconds / PEAK_FLOPS["h100"]


def shape_of(model: str) -> Shape:
    """Return the shape of `base` or `large`."""
    return load_recipe(Path(__file__).parents[1] / f"yamls/main/{model}.yaml").model.shape


def attention_seconds(shape: Shape, tokens: int, keys: int, attention: str = "FlashAttention 2") -> float:
    """Predict the seconds of one layer's attention, forward and backward, with `keys` keys per query."""
    return shape.attention_flops_of_pairs(tokens * keys) / ATTENTION[attention]


def loss_seconds(shape: Shape, predicted: float) -> tuple[float, float]:
    """Predict the seconds of the compiled loss of `predicted` tokens: those of its products, and the rest."""
    return shape.matmul_flops(0, predicted) / PRODUCTS, _loss_bytes(shape, predicted, "compiled") / MEMORY


def optimizer_seconds(shape: Shape) -> float:
    """Predict a StableAdamW step's seconds on one GPU. It reads and writes weights and moments and reads gradients."""
    return 7 * torch.float32.itemsize * shape.parameters / MEMORY


def _loss_bytes(shape: Shape, predicted: float, way: str) -> float:
    """Count the bytes that the loss moves besides its products. Each chunk's gradient is added to the embedding's."""
    chunks = predicted * shape.vocab_size * torch.bfloat16.itemsize / CHUNK_BYTES
    adding = torch.bfloat16.itemsize + 2 * torch.float32.itemsize  # read the chunk's, read and write the embedding's
    return predicted / CHUNK_TOKENS * CHUNK[way] + chunks * adding * shape.vocab_size * shape.hidden_size


def predict(model: str, rows: int, row_length: int, way: str, attention: str = "FlashAttention 2") -> Prediction:
    """Predict a microbatch of `base` or `large`; `way` is eager or compiled, `attention` a key of ATTENTION."""
    shape = shape_of(model)
    tokens = rows * row_length
    predicted = MASKED * tokens
    local = shape.num_hidden_layers - shape.num_global_layers
    keys = shape.num_global_layers * row_length + local * min(row_length, LOCAL_KEYS)  # per token, in all layers
    products = shape.matmul_flops(tokens, predicted)
    unit = 2 * tokens * shape.hidden_size
    return Prediction(
        products=products / PRODUCTS,
        attention=attention_seconds(shape, tokens, keys, attention),
        elementwise=LAYER[model, way] * unit * shape.num_hidden_layers / MEMORY,
        loss=_loss_bytes(shape, predicted, way) / MEMORY,
        tokens=tokens,
        flops=products + shape.attention_flops([row_length] * rows),
    )
