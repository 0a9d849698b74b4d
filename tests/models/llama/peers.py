"""Small Llamas of ours, and transformers' LlamaForCausalLM with the same weights and the same documents."""

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from rotary_foundry.models.family import find_family
from rotary_foundry.models.llama.network import Llama
from rotary_foundry.models.llama.shape import Shape
from rotary_foundry.objectives.objective import IGNORE_INDEX
from tests.models.peers import sharpened

FAMILY = find_family("llama")
TRAINED_LENGTH = 256  # max_position_embeddings of their configuration
SMALL = {
    "vocab_size": 192,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
    "norm_eps": 1e-5,
    "rope_scaling": "none",
    "original_max_position_embeddings": None,
}
KNOBS = {"rope_theta": 10_000.0, "rope_factor": 1.0}
SCALED = {  # by a factor of 4
    "linear": {"rope_scaling": "linear", "rope_factor": 4.0},
    "ntk": {"rope_scaling": "ntk", "rope_factor": 4.0},
    "yarn": {"rope_scaling": "yarn", "rope_factor": 4.0, "original_max_position_embeddings": TRAINED_LENGTH},
}


def small_shape(**changes) -> Shape:
    return Shape(**SMALL | changes)


def our_network(seed: int = 0, attn_implementation: str = "auto", **changes) -> Llama:
    """Build a small network with weights large enough for sharp attention; changes: of the shape, or of the knobs."""
    knobs = KNOBS | {name: changes.pop(name) for name in KNOBS & changes.keys()}
    network = Llama(small_shape(**changes), knobs, attn_implementation)
    return sharpened(network, seed)


def their_positions(ours: Llama) -> dict:
    """Our positions as transformers' `rope_parameters`; their static form of ntk is a larger theta."""
    method, factor, theta = ours.shape.rope_scaling, ours.knobs["rope_factor"], ours.knobs["rope_theta"]
    if method == "ntk":
        return {
            "rope_type": "default",
            "rope_theta": theta * factor ** (ours.shape.head_dim / (ours.shape.head_dim - 2)),
        }
    scaled = {} if method == "none" else {"factor": factor}
    original = ours.shape.original_max_position_embeddings
    scaled |= {} if original is None else {"original_max_position_embeddings": original}
    return {"rope_type": "default" if method == "none" else method, "rope_theta": theta, **scaled}


def their_network(ours: Llama, attn_implementation: str = "sdpa") -> LlamaForCausalLM:
    """transformers' network in the dtype of ours. In float64 its norms and rotary tables are made float64, too."""
    shape = ours.shape
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        rms_norm_eps=shape.norm_eps,
        tie_word_embeddings=shape.tie_word_embeddings,
        max_position_embeddings=TRAINED_LENGTH,
        rope_parameters=their_positions(ours),
    )
    theirs = LlamaForCausalLM._from_config(config, attn_implementation=attn_implementation)
    theirs.load_state_dict(ours.state_dict(), strict=not shape.tie_word_embeddings)
    theirs.tie_weights()
    if next(ours.parameters()).dtype == torch.float64:
        theirs.double()
        theirs.model.rotary_emb = Float64Rotary(ours.shape.head_dim, ours.knobs["rope_theta"])
        for name, module in list(theirs.named_modules()):
            if isinstance(module, LlamaRMSNorm):
                exact = nn.RMSNorm(shape.hidden_size, eps=shape.norm_eps)
                exact.weight = module.weight
                parent, _, child = name.rpartition(".")
                setattr(theirs.get_submodule(parent), child, exact)
    return theirs.train(ours.training)


class Float64Rotary(nn.Module):
    """Plain rotary positions; transformers has only float32."""

    def __init__(self, head_dim: int, theta: float):
        super().__init__()
        self.frequencies = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = (position_ids[..., None] * self.frequencies).repeat(1, 1, 2)
        return angles.cos(), angles.sin()


def their_logits(theirs: LlamaForCausalLM, input_ids: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Their logits for packed documents in one row, [tokens, vocabulary].

    Positions begin anew in every document. Without a mask or a cache, transformers makes the block mask from that.
    """
    lengths = cu_seqlens.diff().tolist()
    positions = torch.cat([torch.arange(length) for length in lengths])
    return theirs(input_ids[None], position_ids=positions[None], use_cache=False).logits[0]


def next_tokens(input_ids: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Labels for our network: the token after each; a document's last has none. [tokens] int64"""
    labels = input_ids.roll(-1)
    labels[cu_seqlens[1:].long() - 1] = IGNORE_INDEX
    return labels
