"""Name the dimensions of ModernBERT's parameters, for growing a model from a smaller one (models/growing.py).

The target's shape decides which layers attend globally, so a layer's window may differ from that of its source.
"""

from rotary_foundry.models.growing import Dimension, Growth, source_layer
from rotary_foundry.models.modernbert.shape import Shape

VOCABULARY, HIDDEN = Dimension("vocab_size"), Dimension("hidden_size")
INTERMEDIATE, GLU = Dimension("intermediate_size"), Dimension("intermediate_size", parts=2)
HEADS, QKV = Dimension("num_attention_heads"), Dimension("num_attention_heads", parts=3)

DIMENSIONS = {  # by the end of a parameter's name
    "tok_embeddings.weight": (VOCABULARY, HIDDEN),
    "norm.weight": (HIDDEN,),
    "attn.Wqkv.weight": (QKV, HIDDEN),
    "attn.Wo.weight": (HIDDEN, HEADS),
    "mlp.Wi.weight": (GLU, HIDDEN),
    "mlp.Wo.weight": (HIDDEN, INTERMEDIATE),
    "head.dense.weight": (HIDDEN, HIDDEN),
    "decoder.bias": (VOCABULARY,),
}


def source_name(name: str, source: Shape, target: Shape) -> str:
    """Return the source's parameter that a parameter of the target comes from."""
    if not name.startswith("model.layers."):
        return name
    layer, parameter = name.removeprefix("model.layers.").split(".", 1)
    found = source_layer(int(layer), source.num_hidden_layers, target.num_hidden_layers)
    if found == 0 and parameter == "attn_norm.weight":  # layer 0 has none: the embedding's norm is before it
        return "model.embeddings.norm.weight"
    return f"model.layers.{found}.{parameter}"


GROWTH = Growth(DIMENSIONS, source_name)
