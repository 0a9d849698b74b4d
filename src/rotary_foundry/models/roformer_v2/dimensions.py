"""Name the dimensions of RoFormerV2's parameters, for growing a model from a smaller one (models/growing.py)."""

from rotary_foundry.models.growing import Dimension, Growth, source_layer
from rotary_foundry.models.roformer_v2.shape import Shape

HIDDEN, INTERMEDIATE = Dimension("hidden_size"), Dimension("intermediate_size")

DIMENSIONS = {  # by the end of a parameter's name
    "word_embeddings.weight": (Dimension("vocab_size"), HIDDEN),
    "token_type_embeddings.weight": (Dimension("token_types"), HIDDEN),
    "attn.Wqkv.weight": (Dimension("num_attention_heads", parts=3), HIDDEN),
    "attn.Wo.weight": (HIDDEN, Dimension("num_attention_heads")),
    "mlp.Wi.weight": (INTERMEDIATE, HIDDEN),
    "mlp.Wo.weight": (HIDDEN, INTERMEDIATE),
}


def source_name(name: str, source: Shape, target: Shape) -> str:
    """Return the source's parameter that a parameter of the target comes from."""
    if not name.startswith("layers."):
        return name
    layer, parameter = name.removeprefix("layers.").split(".", 1)
    return f"layers.{source_layer(int(layer), source.num_hidden_layers, target.num_hidden_layers)}.{parameter}"


GROWTH = Growth(DIMENSIONS, source_name)
