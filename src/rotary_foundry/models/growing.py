"""Growing a model from a smaller one, as ModernBERT-large began from base (arXiv 2412.13663, "Weight Initialization and
Tiling"): the source in the centre of the target, the rest filled by wrapping around.

- A dimension of size s grown to t begins (t - s) // 2 places before the source's first index and counts on modulo s:
  the source stands once, whole, in the middle, and its copies go on to either side.
- What is counted is what has a meaning of its own: heads, in each of Q, K and V, for attention, and rows in each half
  of the GLU's input. So a head of the target is a head of the source, with its queries, keys, values and columns of Wo,
  and rotary pairs stay pairs. Tiling Wqkv as one matrix would cut all of them.
- Layers are spread as Gopher's (arXiv 2112.11446): a few stand twice in a row. Whether a layer attends globally is the
  target's own affair, so a layer may find itself with another window than its source had.
- One parameter at a time, from one parameter of the source, so that a rank can keep its shard of each and nobody holds
  the target whole.
"""

from collections.abc import KeysView, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from rotary_foundry.models.modernbert.network import MaskedLM
from rotary_foundry.recipe.schema import ModelConfig
from rotary_foundry.utils.errors import ConfigurationError, DataError

SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
EMBEDDING_NORM = "model.embeddings.norm.weight"


class Dimension(NamedTuple):
    """A dimension of a parameter: `parts` of equal length one after another, each a row of units."""

    units: str  # the size in the config that counts them in one part
    parts: int = 1

    def places(self, config: ModelConfig) -> Tensor:
        """Every index of the dimension. [parts, units, indices of a unit] int64"""
        units = getattr(config, self.units)
        width = config.hidden_size // units if self.units == "num_attention_heads" else 1
        return torch.arange(self.parts * units * width).view(self.parts, units, width)

    def index(self, source: ModelConfig, target: ModelConfig) -> Tensor:
        """The source's index for each of the target's. [target size] int64"""
        places = self.places(source)
        size, grown = places.shape[1], getattr(target, self.units)
        wrapped = (torch.arange(grown) - (grown - size) // 2) % size
        return places[:, wrapped].flatten()


VOCABULARY, HIDDEN = Dimension("vocab_size"), Dimension("hidden_size")
INTERMEDIATE, GLU = Dimension("intermediate_size"), Dimension("intermediate_size", parts=2)
HEADS, QKV = Dimension("num_attention_heads"), Dimension("num_attention_heads", parts=3)

DIMENSIONS = {  # by how a parameter's name ends
    "tok_embeddings.weight": (VOCABULARY, HIDDEN),
    "norm.weight": (HIDDEN,),
    "attn.Wqkv.weight": (QKV, HIDDEN),
    "attn.Wo.weight": (HIDDEN, HEADS),
    "mlp.Wi.weight": (GLU, HIDDEN),
    "mlp.Wo.weight": (HIDDEN, INTERMEDIATE),
    "head.dense.weight": (HIDDEN, HIDDEN),
    "decoder.bias": (VOCABULARY,),
}


def tile_from(source_state: Mapping[str, Tensor], source: ModelConfig, target: ModelConfig) -> dict[str, Tensor]:
    """Grow a whole model.

    Args:
        source_state: the state dict of a MaskedLM of `source`.
        source, target: the shapes. Windows, thetas, dropout and the pattern of global layers may differ freely.

    Returns:
        The state dict of a MaskedLM of `target`, in the source's dtypes and sharing no memory with it.

    Raises:
        ConfigurationError: `target` is smaller somewhere, or its vocabulary or head size is another.
        DataError: `source_state` is not of `source`; names the first tensor that is not.
    """
    check_growth(source, target)
    unknown = sorted(source_state.keys() - _parameter_names(source))
    if unknown:
        raise _misfit(f"it has no {unknown[0]}")
    return {name: tile_parameter(name, source_state, source, target) for name in _parameter_names(target)}


@torch.no_grad()
def tile_parameter(name: str, source_state: Mapping[str, Tensor], source: ModelConfig, target: ModelConfig) -> Tensor:
    """Grow one of the target's parameters; the one of the source that it comes from is all that is read.

    Args and errors are those of `tile_from`; `name` is one of MaskedLM(target)'s.
    """
    check_growth(source, target)
    dimensions = next(dimensions for ending, dimensions in DIMENSIONS.items() if name.endswith(ending))
    source_name = _source_name(name, source, target)
    if source_name not in source_state:
        raise _misfit(f"they have no {source_name}")
    tensor = source_state[source_name]
    shape = [dimension.places(source).numel() for dimension in dimensions]
    if list(tensor.shape) != shape:
        raise _misfit(f"{source_name} is {list(tensor.shape)}, it makes it {shape}")
    for axis, dimension in enumerate(dimensions):
        tensor = tensor.index_select(axis, dimension.index(source, target).to(tensor.device))
    return tensor


def check_growth(source: ModelConfig, target: ModelConfig) -> None:
    """Whether a model of one shape can be grown from the other; needs no weights.

    Raises:
        ConfigurationError: `target` is smaller somewhere, or its vocabulary or head size is another.
    """
    for key in SIZES:
        ours, theirs = getattr(target, key), getattr(source, key)
        if ours < theirs:
            raise ConfigurationError(f"model.{key}: {ours} is less than the {theirs} of the model it would grow from")
    if target.vocab_size != source.vocab_size:
        raise ConfigurationError(
            f"model.vocab_size: {target.vocab_size}, but {source.vocab_size} in the model it would grow from; "
            "token ids do not grow, both models need one tokenizer and one vocab_size"
        )
    ours, theirs = (config.hidden_size // config.num_attention_heads for config in (target, source))
    if ours != theirs:
        raise ConfigurationError(
            f"model.num_attention_heads: {target.num_attention_heads} make heads of {ours}, but they are of {theirs} "
            f"in the model it would grow from and stay whole; choose hidden_size / {theirs}"
        )


def source_layer(layer: int, source_layers: int, target_layers: int) -> int:
    """The layer of the source that a layer of the target comes from; a tie goes to the even one.

    The cap matters only where the target has twice the layers or more: there the last ones would round beyond the end.
    """
    return min(round(layer * source_layers / target_layers), source_layers - 1)


def _source_name(name: str, source: ModelConfig, target: ModelConfig) -> str:
    if not name.startswith("model.layers."):
        return name
    layer, parameter = name.removeprefix("model.layers.").split(".", 1)
    found = source_layer(int(layer), source.num_hidden_layers, target.num_hidden_layers)
    if found == 0 and parameter == "attn_norm.weight":  # layer 0 has none: its input came through the embedding's
        return EMBEDDING_NORM
    return f"model.layers.{found}.{parameter}"


def _parameter_names(config: ModelConfig) -> KeysView[str]:
    with torch.device("meta"):
        return MaskedLM(config, rope_theta=1.0).state_dict().keys()  # any theta: it has no parameters


def _misfit(complaint: str) -> DataError:
    return DataError(
        f"the weights to grow from are not of the model config given with them: {complaint}; "
        "give the config that they were trained with"
    )
