"""Growing a model from a smaller one, as ModernBERT-large began from base (arXiv 2412.13663, "Weight Initialization and
Tiling"): the source in the centre of the target, the rest filled by wrapping around.

- A dimension of size s grown to t begins (t - s) // 2 places before the source's first index and counts on modulo s:
  the source stands once, whole, in the middle, and its copies go on to either side.
- A family says what a dimension counts (`Growth`): heads in each of Q, K and V for attention, rows in each half of a
  GLU's input. So a head of the target is a head of the source, with its queries, keys, values and columns of the output
  projection, and rotary pairs stay pairs. Tiling a fused projection as one matrix would cut all of them.
- Layers are spread as Gopher's (arXiv 2112.11446): a few stand twice in a row.
- One parameter at a time, from one parameter of the source, so that a rank can keep its shard of each and nobody holds
  the target whole.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rotary_foundry.models.family import Family, Shape
from rotary_foundry.utils.errors import ConfigurationError, DataError


class Dimension(NamedTuple):
    """A dimension of a parameter: `parts` of equal length one after another, each a row of units."""

    units: str  # the field of the shape that counts them in one part
    parts: int = 1

    def places(self, shape: Shape) -> Tensor:
        """Return every index of the dimension. [parts, units, indices of a unit] int64"""
        units = getattr(shape, self.units)
        width = shape.head_dim if self.units == "num_attention_heads" else 1
        return torch.arange(self.parts * units * width).view(self.parts, units, width)

    def index(self, source: Shape, target: Shape) -> Tensor:
        """Return the source's index for each of the target's. [target size] int64"""
        places = self.places(source)
        size, grown = places.shape[1], getattr(target, self.units)
        wrapped = (torch.arange(grown) - (grown - size) // 2) % size
        return places[:, wrapped].flatten()


@dataclass(frozen=True)
class Growth:
    """How a family's parameters grow.

    Args:
        dimensions: of a parameter, by how its name ends.
        source_name: the source's parameter that a target's comes from: (name, source's shape, target's shape) → name.
    """

    dimensions: Mapping[str, tuple[Dimension, ...]]
    source_name: Callable[[str, Shape, Shape], str]


@torch.no_grad()
def tile_parameter(
    name: str, source_state: Mapping[str, Tensor], family: Family, source: Shape, target: Shape
) -> Tensor:
    """Grow one parameter of a model; only the source's parameter that it comes from is read.

    Args:
        name: of the target's parameter.
        source_state: the state dict of a network of the shape `source`.
        family: of both.
        source, target: the shapes. What is not in `Shape.sizes` may differ freely, but for the vocabulary.

    Returns:
        The parameter, in the source's dtype and sharing no memory with it.

    Raises:
        ConfigurationError: `target` is smaller somewhere, or its vocabulary or head size is another.
        DataError: `source_state` is not of `source`.
    """
    check_growth(source, target)
    growth = family.growth
    dimensions = next(dimensions for ending, dimensions in growth.dimensions.items() if name.endswith(ending))
    source_name = growth.source_name(name, source, target)
    if source_name not in source_state:
        raise _misfit(f"they have no {source_name}")
    tensor = source_state[source_name]
    shape = [dimension.places(source).numel() for dimension in dimensions]
    if list(tensor.shape) != shape:
        raise _misfit(f"{source_name} is {list(tensor.shape)}, it makes it {shape}")
    for axis, dimension in enumerate(dimensions):
        tensor = tensor.index_select(axis, dimension.index(source, target).to(tensor.device))
    return tensor


def check_growth(source: Shape, target: Shape) -> None:
    """Check that a model of one shape can be grown from the other; needs no weights.

    Raises:
        ConfigurationError: `target` is smaller somewhere, or its vocabulary or head size is another.
    """
    if type(source) is not type(target):
        raise ConfigurationError("model.family: the model to grow from is of another family")
    for key in target.sizes:
        ours, theirs = getattr(target, key), getattr(source, key)
        if ours < theirs:
            raise ConfigurationError(f"model.{key}: {ours} is less than the {theirs} of the model it would grow from")
    if target.vocab_size != source.vocab_size:
        raise ConfigurationError(
            f"model.vocab_size: {target.vocab_size}, but {source.vocab_size} in the model it would grow from; "
            "token ids do not grow, both models need one tokenizer and one vocab_size"
        )
    if target.head_dim != source.head_dim:
        raise ConfigurationError(
            f"model.num_attention_heads: {target.num_attention_heads} make heads of {target.head_dim}, but they are of "
            f"{source.head_dim} in the model it would grow from and stay whole; choose hidden_size / {source.head_dim}"
        )


def source_layer(layer: int, source_layers: int, target_layers: int) -> int:
    """Return the layer of the source that a layer of the target comes from; a tie goes to the even one.

    The cap matters only where the target has twice the layers or more: there the last ones would round beyond the end.
    """
    return min(round(layer * source_layers / target_layers), source_layers - 1)


def _misfit(complaint: str) -> DataError:
    return DataError(
        f"the weights to grow from are not of the model config given with them: {complaint}; "
        "give the config that they were trained with"
    )
