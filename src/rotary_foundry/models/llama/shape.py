"""Llama's shape (arXiv 2307.09288, section 2.2): sizes, parameters and operations, in plain Python.

Operations are counted as for MFU (PaLM, arXiv 2204.02311, appendix B): a multiplication and an addition are two. Matrix
products of the layers count at every token, the product of the output only at predicted tokens. Attention counts the
pairs of a query and a key up to its own position. Norms, activations, rotary positions and the softmax are not counted.

A context is extended by a larger `rope_theta`, or by a `rope_scaling` with a `rope_factor`. The method is a key of the
model. The factor is a knob, so a stage may begin the extension: at a factor of 1, every method is the plain rotation.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from rotary_foundry.models.family import FLOAT32, FORWARD_AND_BACK
from rotary_foundry.models.theta_bound import smallest_theta
from rotary_foundry.models.transformer_shape import TransformerShape
from rotary_foundry.utils.knob import Knob, Problem
from rotary_foundry.utils.wording import nearest

KNOBS = {
    "rope_theta": Knob("theta of the global layers", low=1.0, of_weights=True),  # all layers are global
    "rope_factor": Knob(
        "new context length over the old, for rope_scaling", low=1.0, includes_low=True, of_weights=True
    ),
}
NONE, LINEAR, NTK, YARN = SCALINGS = ("none", "linear", "ntk", "yarn")
OUTPUT, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@dataclass(frozen=True)
class Shape(TransformerShape):
    """The sizes of a Llama, and the scaling of its positions."""

    num_key_value_heads: int  # each serves num_attention_heads / num_key_value_heads heads of queries
    tie_word_embeddings: bool  # whether the output is the embedding
    norm_eps: float
    rope_scaling: str  # none, linear, ntk or yarn: see models/layers/rope_scaling.py
    original_max_position_embeddings: int | None  # the row length before yarn's extension; null for other methods

    sizes: ClassVar = (
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "num_hidden_layers",
    )
    not_sizes: ClassVar = ("tie_word_embeddings", "rope_scaling")

    @property
    def key_value_size(self) -> int:
        """The width of the keys, and of the values, of all heads together."""
        return self.num_key_value_heads * self.head_dim

    @property
    def group_size(self) -> int:
        """The width of the queries that one key/value head serves."""
        return self.hidden_size // self.num_key_value_heads

    def further_problems(self) -> Iterator[Problem]:
        heads, of_keys = self.num_attention_heads, self.num_key_value_heads
        if heads % of_keys:
            yield "num_key_value_heads", f"{of_keys} key/value heads do not divide {heads} heads of queries"
        if self.rope_scaling not in SCALINGS:
            yield "rope_scaling", f"'{self.rope_scaling}' is not known; {nearest(self.rope_scaling, SCALINGS)}"
        if self.rope_scaling == NTK and self.head_dim == 2:
            yield "rope_scaling", f"'{NTK}' needs heads of more than 2 dimensions"
        original = self.original_max_position_embeddings
        if self.rope_scaling == YARN and original is None:
            yield "original_max_position_embeddings", f"null, but '{YARN}' needs the row length before the extension"
        if self.rope_scaling != YARN and original is not None:
            yield "original_max_position_embeddings", f"{original}, but only '{YARN}' uses it; give null"

    def knob_problems(self, knobs: Mapping[str, Any], row_length: int = 0) -> Iterator[Problem]:
        given, original = knobs["rope_factor"], self.original_max_position_embeddings
        if self.rope_scaling == NONE and given != 1:
            yield "rope_factor", f"{given} has no effect with rope_scaling '{NONE}'; choose a method"
        ends = [given.get("start"), given.get("end")] if isinstance(given, Mapping) else [given]
        factor = max((end for end in ends if isinstance(end, int | float)), default=math.inf)
        if self.rope_scaling == YARN and original is not None and row_length > factor * original:
            yield (
                "rope_factor",
                f"{factor:g} times original_max_position_embeddings, {original:,}, are {factor * original:,.0f} "
                f"positions, and row_length is {row_length:,}; give at least {row_length / original:g}",
            )

    def remarks(self, knobs: Mapping[str, float], row_length: int) -> Iterator[str]:
        """Warn if theta is below the bound of arXiv 2405.14591, except for yarn."""
        if self.rope_scaling == YARN:
            return
        theta, length = self.plain_theta(knobs), row_length
        if self.rope_scaling == LINEAR:
            length = math.ceil(row_length / knobs["rope_factor"])
        if theta < (needed := smallest_theta(length, self.head_dim)):
            needed *= knobs["rope_theta"] / theta
            yield (
                f"rope_theta {knobs['rope_theta']:,.0f} is small for rows of {row_length:,} tokens: with heads of "
                f"{self.head_dim}, retrieval over the whole row needs {needed:,.0f} (arXiv 2405.14591)"
            )

    def plain_theta(self, knobs: Mapping[str, float]) -> float:
        """Return the theta at which an unscaled model has ntk's positions; with other scalings, rope_theta itself."""
        power = self.head_dim / (self.head_dim - 2) if self.rope_scaling == NTK else 0
        return float(knobs["rope_theta"]) * float(knobs["rope_factor"]) ** power

    def growth_problems(self, source: Self) -> Iterator[Problem]:
        if self.group_size != source.group_size:
            yield (
                "num_key_value_heads",
                f"expected {source.group_size // source.head_dim} heads of queries for each, as in the model to grow "
                f"from, got {self.group_size // self.head_dim}",
            )
        if self.tie_word_embeddings and not source.tie_word_embeddings:
            yield (
                "tie_word_embeddings",
                "true, but the model to grow from has an output of its own; set false to keep it",
            )

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        hidden, inner, of_keys = self.hidden_size, self.intermediate_size, self.key_value_size
        shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (self.vocab_size, hidden)}
        for layer in range(self.num_hidden_layers):
            of_layer = {
                "input_layernorm": (hidden,),
                "self_attn.q_proj": (hidden, hidden),
                "self_attn.k_proj": (of_keys, hidden),
                "self_attn.v_proj": (of_keys, hidden),
                "self_attn.o_proj": (hidden, hidden),
                "post_attention_layernorm": (hidden,),
                "mlp.gate_proj": (inner, hidden),
                "mlp.up_proj": (inner, hidden),
                "mlp.down_proj": (hidden, inner),
            }
            shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in of_layer.items()}
        shapes["model.norm.weight"] = (hidden,)
        return shapes if self.tie_word_embeddings else shapes | {OUTPUT: (self.vocab_size, hidden)}

    def matmul_flops(self, tokens: float, predicted: float) -> float:
        hidden = self.hidden_size
        layer = 2 * hidden * (hidden + self.key_value_size) + 3 * hidden * self.intermediate_size
        output = hidden * self.vocab_size
        return FORWARD_AND_BACK * 2 * (tokens * self.num_hidden_layers * layer + predicted * output)

    def attention_flops(self, lengths: Iterable[int]) -> float:
        pairs = sum(length * (length + 1) // 2 for length in lengths)
        return self.attention_flops_of_pairs(self.num_hidden_layers * pairs)

    def kept_of_layer(self, itemsize: int, compiled: bool) -> int:
        hidden, inner, of_keys = self.hidden_size, self.intermediate_size, self.key_value_size
        # inputs of the norms, and of the products with q, k, v, gate and up, each with its own cast; queries and
        # attention's output; keys and values; gate and up. A compiled layer keeps no more, and is counted the same
        inputs = 2 if itemsize == FLOAT32 else 5
        return 2 * FLOAT32 * hidden + itemsize * ((inputs + 2) * hidden + 2 * of_keys + 2 * inner)

    def describe(self, knobs: Mapping[str, float]) -> str:
        tied = "tied to" if self.tie_word_embeddings else "apart from"
        scaled = "" if self.rope_scaling == NONE else f", scaled by {self.rope_scaling} × {knobs['rope_factor']:g}"
        return (
            f"A Llama decoder: {self.parameters:,} parameters, {self.num_hidden_layers} layers of width "
            f"{self.hidden_size:,} with {self.num_attention_heads} heads of queries and {self.num_key_value_heads} of "
            f"keys and values, {self.vocab_size:,} tokens in its vocabulary; the output is {tied} the embedding. Every "
            f"layer attends to the document up to each token. Rotary theta is {knobs['rope_theta']:,.0f}{scaled}."
        )

    def rehearsal(self) -> Self:
        return replace(
            self,
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4 if self.num_key_value_heads == self.num_attention_heads else 2,
        )

    def smaller(self) -> Self:
        """Return the shape without one key/value head, the query heads that it serves, and one layer."""
        heads = self.num_attention_heads - self.num_attention_heads // self.num_key_value_heads
        return replace(
            self,
            hidden_size=self.head_dim * heads,
            num_attention_heads=heads,
            num_key_value_heads=self.num_key_value_heads - 1,
            num_hidden_layers=self.num_hidden_layers - 1,
        )
