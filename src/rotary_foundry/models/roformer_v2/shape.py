"""RoFormerV2's shape (ZhuiyiTechnology/roformer-v2): sizes, parameters and operations, in plain Python.

Operations are counted as for MFU (PaLM, arXiv 2204.02311, appendix B): a multiplication and an addition are two. Matrix
products of the layers count at every token, the product of the output only at predicted tokens. Norms, activations,
rotary positions and the softmax are not counted.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

from rotary_foundry.models.family import FLOAT32, FORWARD_AND_BACK
from rotary_foundry.models.transformer_shape import TransformerShape
from rotary_foundry.utils.knob import Knob, Problem

KNOBS = {
    "rope_theta": Knob("theta of the global layers", of_weights=True),  # all layers are global
    "residual_scale": Knob(
        "α in x ← norm(x + α·F(x)), of both sub-layers of every layer",  # kexue.fm/archives/8998 and 8620
        high=1.0,
        includes_low=True,
        includes_high=True,
        of_weights=True,
    ),
    "hidden_dropout": Knob("dropout of embeddings, sub-layers and output", high=1.0, includes_low=True),
}


@dataclass(frozen=True)
class Shape(TransformerShape):
    """The sizes of a RoFormerV2, and the two numbers in which the release and the published code differ."""

    norm_eps: float
    # It affects only the initialisation: matrices have a standard deviation of
    # num_hidden_layers**-init_depth_exponent / sqrt(fan-in).
    init_depth_exponent: float = field(compare=False)

    not_sizes: ClassVar = ("init_depth_exponent",)
    token_types: ClassVar[int] = 2  # as in every published model; pretraining uses only type 0

    def further_problems(self) -> Iterator[Problem]:
        if not 0 <= self.init_depth_exponent <= 1:
            yield "init_depth_exponent", f"{self.init_depth_exponent} is not in [0, 1]"

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        hidden, inner = self.hidden_size, self.intermediate_size
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.word_embeddings.weight": (self.vocab_size, hidden),
            "embeddings.token_type_embeddings.weight": (self.token_types, hidden),
        }
        for layer in range(self.num_hidden_layers):
            shapes |= {
                f"layers.{layer}.attn.Wqkv.weight": (3 * hidden, hidden),
                f"layers.{layer}.attn.Wo.weight": (hidden, hidden),
                f"layers.{layer}.mlp.Wi.weight": (inner, hidden),
                f"layers.{layer}.mlp.Wo.weight": (hidden, inner),
            }
        return shapes

    def matmul_flops(self, tokens: float, predicted: float) -> float:
        layer = 4 * self.hidden_size**2 + 2 * self.hidden_size * self.intermediate_size
        output = self.hidden_size * self.vocab_size
        return FORWARD_AND_BACK * 2 * (tokens * self.num_hidden_layers * layer + predicted * output)

    def attention_flops(self, lengths: Iterable[int]) -> float:
        return self.attention_flops_of_pairs(self.num_hidden_layers * sum(length**2 for length in lengths))

    def kept_of_layer(self, itemsize: int, compiled: bool) -> int:
        hidden, inner = self.hidden_size, self.intermediate_size
        # A layer keeps in float32 the inputs of both norms (compiled: of one norm and the layer), and in the products'
        # type those of the layer and of the second product, q, k and v, q and k before rotation (v is a view of the
        # projection), outputs of attention and feed-forward part; compiled, attention's product. Dropout: two bytes.
        others = 9 if compiled else 8
        return 2 * FLOAT32 * hidden + itemsize * (others * hidden + inner) + 2 * hidden

    def describe(self, knobs: Mapping[str, float]) -> str:
        return (
            f"A RoFormerV2 encoder: {self.parameters:,} parameters as a masked language model, "
            f"{self.num_hidden_layers} post-norm layers of width {self.hidden_size:,} with {self.num_attention_heads} "
            f"heads, {self.vocab_size:,} tokens in its vocabulary; no biases, and norms without gains. Every layer "
            f"attends to the whole document. Rotary theta is {knobs['rope_theta']:,.0f}."
        )

    def rehearsal(self) -> Self:
        return replace(self, hidden_size=256, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4)
