"""The keys of a recipe, typed. Keys that Composer's Trainer or Streaming have bear their names."""

from dataclasses import dataclass


@dataclass
class ModelConfig:
    """ModernBERT's shape. The theta of the global layers is not here: it belongs to the stage."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int  # inner width of the GLU; its input projection is twice as wide
    num_hidden_layers: int
    num_attention_heads: int
    global_attn_every_n_layers: int  # layers 0, n, 2n, … attend globally
    local_attention: int  # window of the other layers in tokens, half of it to each side
    local_rope_theta: float
    norm_eps: float
    attn_out_dropout: float
