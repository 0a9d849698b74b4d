"""ModernBERT's shape (arXiv 2412.13663, section 2.1): sizes, parameters and operations, in plain Python.

Operations are counted as for MFU (PaLM, arXiv 2204.02311, appendix B): a multiplication and an addition are two. Matrix
products of the layers count at every token. Those of the head, whose decoder is by far the largest, count only at
predicted tokens. Attention counts the pairs of tokens that see each other; in local layers, those inside the window.
Norms, activations, rotary positions and the softmax are not counted.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Self

from rotary_foundry.models.family import FLOAT32, FORWARD_AND_BACK
from rotary_foundry.models.transformer_shape import TransformerShape
from rotary_foundry.utils.knob import Knob, Problem

KNOBS = {
    "rope_theta": Knob("theta of the global layers", of_weights=True),
    "local_rope_theta": Knob("theta of the local layers", of_weights=True),
    "attn_out_dropout": Knob("dropout after attention's output projection", high=1.0, includes_low=True),
}


@dataclass(frozen=True)
class Shape(TransformerShape):
    """The sizes of a ModernBERT. Layers 0, n, 2n, … attend to the whole document, the others within a window.

    `intermediate_size` is the inner width of the GLU; its input projection is twice as wide.
    """

    global_attn_every_n_layers: int  # n
    local_attention: int | None  # the window in tokens, half of it to each side; null if n is 1: no layer is local
    norm_eps: float

    @property
    def num_global_layers(self) -> int:
        return -(-self.num_hidden_layers // self.global_attn_every_n_layers)

    def window(self, layer: int) -> int | None:
        """Return a layer's window in tokens; None if it attends to the whole document."""
        return self.local_attention if layer % self.global_attn_every_n_layers else None

    def further_problems(self) -> Iterator[Problem]:
        every = f"global_attn_every_n_layers {self.global_attn_every_n_layers}"
        if self.global_attn_every_n_layers == 1:
            if self.local_attention is not None:
                yield "local_attention", f"{self.local_attention}, but with {every} no layer is local; give null"
        elif self.local_attention is None:
            yield "local_attention", f"null, but with {every} there are local layers; give their window, such as 128"
        elif self.local_attention % 2:
            yield "local_attention", f"{self.local_attention} is odd; half of the window lies to each side"

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        hidden, inner = self.hidden_size, self.intermediate_size
        shapes: dict[str, tuple[int, ...]] = {
            "model.embeddings.tok_embeddings.weight": (self.vocab_size, hidden),
            "model.embeddings.norm.weight": (hidden,),
        }
        for layer in range(self.num_hidden_layers):
            of_layer = {
                "attn_norm.weight": (hidden,),
                "attn.Wqkv.weight": (3 * hidden, hidden),
                "attn.Wo.weight": (hidden, hidden),
                "mlp_norm.weight": (hidden,),
                "mlp.Wi.weight": (2 * inner, hidden),
                "mlp.Wo.weight": (hidden, inner),
            }
            if layer == 0:
                del of_layer["attn_norm.weight"]  # the embedding is already normed
            shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in of_layer.items()}
        return shapes | {
            "model.final_norm.weight": (hidden,),
            "head.dense.weight": (hidden, hidden),
            "head.norm.weight": (hidden,),
            "decoder.bias": (self.vocab_size,),
        }

    def matmul_flops(self, tokens: float, predicted: float) -> float:
        head = self.hidden_size**2 + self.hidden_size * self.vocab_size
        layer = 4 * self.hidden_size**2 + 3 * self.hidden_size * self.intermediate_size
        return FORWARD_AND_BACK * 2 * (tokens * self.num_hidden_layers * layer + predicted * head)

    def attention_flops(self, lengths: Iterable[int]) -> float:
        pairs = 0
        for length in lengths:
            pairs += self.num_global_layers * length**2
            if self.local_attention is not None:
                local_layers = self.num_hidden_layers - self.num_global_layers
                pairs += local_layers * _pairs_in_window(length, self.local_attention // 2)
        return self.attention_flops_of_pairs(pairs)

    def kept_of_layer(self, itemsize: int, compiled: bool) -> int:
        hidden, inner = self.hidden_size, self.intermediate_size
        # All layers keep the layer's input in float32, dropout's mask in bytes, and in the products' type: both
        # norms' outputs, q, k and v, q and k before rotation (v is a view of the whole projection), attention's output,
        # and the factors of the feed-forward products. Eager layers also keep the sum before the second norm (float32)
        # and GELU's output. Compiled layers keep only attention's part of that sum, in the products' type.
        if compiled:
            return FLOAT32 * hidden + itemsize * (9 * hidden + 3 * inner) + hidden
        return 2 * FLOAT32 * hidden + itemsize * (8 * hidden + 4 * inner) + hidden

    def describe(self, knobs: Mapping[str, float]) -> str:
        every = self.global_attn_every_n_layers
        local = (
            "every layer attends to the whole document"
            if every == 1
            else f"one layer in {every} attends to the whole document, the others to {self.local_attention} tokens"
        )
        thetas = f"Rotary theta is {knobs['rope_theta']:,.0f}" + (
            "" if every == 1 else f" in the former, {knobs['local_rope_theta']:,.0f} in the latter"
        )
        return (
            f"A ModernBERT encoder: {self.parameters:,} parameters as a masked language model, "
            f"{self.num_hidden_layers} layers of width {self.hidden_size:,} with {self.num_attention_heads} heads, "
            f"{self.vocab_size:,} tokens in its vocabulary; {local}. {thetas}."
        )

    def rehearsal(self) -> Self:
        small = replace(self, hidden_size=256, intermediate_size=240, num_hidden_layers=4, num_attention_heads=4)
        return self if self.parameters < small.parameters and self.num_hidden_layers >= 4 else small


def _pairs_in_window(length: int, reach: int) -> int:
    near = min(reach, length - 1)
    return length + near * (2 * length - near - 1)  # a token and itself; at distance 1 … near, to both sides
