"""The shape that transformers share: sizes, heads and the operations of attention. Imports no torch."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from math import inf
from typing import ClassVar, Self

from rotary_foundry.models import family
from rotary_foundry.models.family import FLOAT32, FORWARD_AND_BACK
from rotary_foundry.utils.knob import Problem

MOST_LAYERS = 10_000  # no model has a tenth of this number


@dataclass(frozen=True)
class TransformerShape(family.Shape):
    """A stack of layers of one width, with heads of one even size."""

    hidden_size: int
    intermediate_size: int  # of the feed-forward part
    num_hidden_layers: int
    num_attention_heads: int

    sizes: ClassVar = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
    not_sizes: ClassVar[tuple[str, ...]] = ()
    """Fields that need not be positive."""

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def rotary_width(self) -> int:
        return 2 * self.hidden_size

    def problems(self) -> Iterator[Problem]:
        """Yield (field, complaint) for every invalid value; a wrong type or sign hides the checks that need it."""
        if wrong := next(self.type_problems(), None):
            yield wrong
            return
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in self.not_sizes}
        bad = {name: value for name, value in values.items() if value is not None and not 0 < value < inf}
        yield from ((name, f"{value} is not positive and finite") for name, value in bad.items())
        if not bad and self.num_hidden_layers > MOST_LAYERS:  # refused before names are made for billions of layers
            bad["num_hidden_layers"] = self.num_hidden_layers
            yield "num_hidden_layers", f"expected at most {MOST_LAYERS:,} layers, got {self.num_hidden_layers:,}"
        if bad:
            return
        heads, hidden = self.num_attention_heads, self.hidden_size
        if hidden % heads:
            yield "num_attention_heads", f"{heads} heads do not divide a hidden size of {hidden}"
        elif self.head_dim % 2:
            yield "num_attention_heads", f"{heads} heads of {self.head_dim}; rotary positions need an even head size"
        yield from self.further_problems()

    def further_problems(self) -> Iterator[Problem]:
        """Yield (field, complaint) for invalid values of a family's own fields; types and signs are already checked."""
        yield from ()

    def attention_flops_of_pairs(self, pairs: int) -> float:
        """Return the operations of attention in training from the number of query-key pairs, summed over all layers."""
        return FORWARD_AND_BACK * 2 * 2 * self.hidden_size * pairs  # scores, and the weighted sum of values

    def megatron_flops(self, tokens: int, row_length: int) -> float:
        hidden = self.hidden_size
        return tokens * 72 * self.num_hidden_layers * hidden**2 * (1 + row_length / (6 * hidden))

    def activation_bytes(self, tokens: int, itemsize: int, recomputed: bool, compiled: bool) -> float:
        """Count what autograd keeps, except a few numbers per token. No part is quadratic in a document's length."""
        hidden, layers = FLOAT32 * self.hidden_size, self.num_hidden_layers
        layer = self.kept_of_layer(itemsize, compiled)
        kept = layers * hidden + layer if recomputed else layers * layer
        last_norm, of_loss = 2 * hidden, 2 * hidden  # before and after the norm; predicted states and their gradient
        return tokens * (kept + last_norm + of_loss)

    @abstractmethod
    def kept_of_layer(self, itemsize: int, compiled: bool) -> int:
        """Return the bytes per token that a layer keeps for the backward pass; arguments as for `activation_bytes`."""

    def smaller(self) -> Self:
        """Return the shape with one head and one layer less."""
        return replace(
            self,
            hidden_size=self.head_dim * (self.num_attention_heads - 1),
            num_attention_heads=self.num_attention_heads - 1,
            num_hidden_layers=self.num_hidden_layers - 1,
        )
