"""Grow a model from a smaller one, as ModernBERT-large began from base (arXiv 2412.13663, "Weight Initialization
and Tiling"): the source is in the centre of the target, and the rest is filled by wrapping around.

- If a dimension grows from size s to t, index i of the target takes index (i - (t - s) // 2) modulo s of the source. So
  one complete copy of the source is in the middle, and further copies continue on both sides.
- A family declares what a dimension counts (`Growth`): heads in each of Q, K and V for attention, rows in each half of
  a GLU's input. So a head of the target is a whole head of the source: its queries, keys, values and columns of the
  output projection. Rotary pairs stay pairs. Tiling a fused projection as one matrix would break all of these.
- Layers are spread as in Gopher (arXiv 2112.11446): some are repeated directly after themselves.
- One parameter is grown at a time, from one parameter of the source. So a rank can keep its shard of each, and no rank
  holds the whole target.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rotary_foundry.models.family import Family, Shape
from rotary_foundry.utils.errors import DataError


class Dimension(NamedTuple):
    """A dimension of a parameter: `parts` of equal length one after another, each a row of units."""

    units: str  # the field of the shape that counts the units of one part
    parts: int = 1
    width: str | None = None  # the field of the shape for the indices of a unit; None: head_dim for heads, else 1

    def places(self, shape: Shape) -> Tensor:
        """Return every index of the dimension. [parts, units, indices of a unit] int64"""
        units = getattr(shape, self.units)
        width = shape.head_dim if self.units == "num_attention_heads" else 1
        width = width if self.width is None else getattr(shape, self.width)
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
        dimensions: the dimensions of a parameter, by the end of its name.
        source_name: maps a target's parameter to the source's: (name, source's shape, target's shape) → name.
    """

    dimensions: Mapping[str, tuple[Dimension, ...]]
    source_name: Callable[[str, Shape, Shape], str]


@torch.no_grad()
def tile_parameter(
    name: str, source_state: Mapping[str, Tensor], family: Family, source: Shape, target: Shape
) -> Tensor:
    """Grow one parameter of a model. Only the parameter of the source that it comes from is read.

    Args:
        name: the name of the target's parameter.
        source_state: the state dict of a network of the shape `source`.
        family: the family of both models.
        source, target: the shapes. Fields outside `Shape.sizes` may differ, except the vocabulary.

    Returns:
        The parameter, in the source's dtype and sharing no memory with it.

    Raises:
        ConfigurationError: `target` is smaller in a dimension, or its vocabulary or head size differs.
        DataError: `source_state` does not fit the shape `source`.
    """
    target.check_growth(source)
    growth = family.growth
    dimensions = next(dimensions for ending, dimensions in growth.dimensions.items() if name.endswith(ending))
    source_name = growth.source_name(name, source, target)
    if source_name not in source_state:
        raise _misfit(f"they have no {source_name}")
    tensor = source_state[source_name]
    shape = [dimension.places(source).numel() for dimension in dimensions]
    if list(tensor.shape) != shape:
        raise _misfit(f"{source_name}: expected shape {shape}, got {list(tensor.shape)}")
    for axis, dimension in enumerate(dimensions):
        tensor = tensor.index_select(axis, dimension.index(source, target).to(tensor.device))
    return tensor


def source_layer(layer: int, source_layers: int, target_layers: int) -> int:
    """Return the source's layer for a layer of the target; a tie is rounded to the even layer.

    The cap matters only if the target has at least twice the layers: then the last ones would round beyond the end.
    """
    return min(round(layer * source_layers / target_layers), source_layers - 1)


def _misfit(complaint: str) -> DataError:
    return DataError(
        f"the weights to grow from do not fit the model config given with them: {complaint}; "
        "give the config that they were trained with"
    )
