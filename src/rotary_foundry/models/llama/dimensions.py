"""Name the dimensions of Llama's parameters, for growing a model from a smaller one (models/growing.py).

Query heads grow together with the key/value head that serves them, so a head reads the keys that it was trained with.
If the target's output is not tied but the source's is, the output grows from the source's embedding.
"""

from rotary_foundry.models.growing import Dimension, Growth, source_layer
from rotary_foundry.models.llama.shape import EMBEDDING, OUTPUT, Shape

VOCABULARY, HIDDEN, INTERMEDIATE = Dimension("vocab_size"), Dimension("hidden_size"), Dimension("intermediate_size")
QUERIES = Dimension("num_key_value_heads", width="group_size")
KEYS = Dimension("num_key_value_heads", width="head_dim")

DIMENSIONS = {  # by the end of a parameter's name
    "embed_tokens.weight": (VOCABULARY, HIDDEN),
    "lm_head.weight": (VOCABULARY, HIDDEN),
    "norm.weight": (HIDDEN,),
    "q_proj.weight": (QUERIES, HIDDEN),
    "k_proj.weight": (KEYS, HIDDEN),
    "v_proj.weight": (KEYS, HIDDEN),
    "o_proj.weight": (HIDDEN, QUERIES),
    "gate_proj.weight": (INTERMEDIATE, HIDDEN),
    "up_proj.weight": (INTERMEDIATE, HIDDEN),
    "down_proj.weight": (HIDDEN, INTERMEDIATE),
}


def source_name(name: str, source: Shape, target: Shape) -> str:
    """Return the source's parameter that a parameter of the target comes from."""
    if name == OUTPUT and source.tie_word_embeddings:
        return EMBEDDING
    if not name.startswith("model.layers."):
        return name
    layer, parameter = name.removeprefix("model.layers.").split(".", 1)
    found = source_layer(int(layer), source.num_hidden_layers, target.num_hidden_layers)
    return f"model.layers.{found}.{parameter}"


GROWTH = Growth(DIMENSIONS, source_name)
