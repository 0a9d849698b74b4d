"""Small RoFormerV2 networks of ours, and transformers' RoFormer made into the same model.

transformers has RoFormer, the first version. With its norms replaced by root mean squares, its biases at 0 and JunnYu's
names for the weights, it computes RoFormerV2. Its table of sines is float32, and is replaced by one in float64.
"""

import torch
from torch import Tensor, nn
from transformers import RoFormerConfig, RoFormerModel

from rotary_foundry.models.family import find_family
from rotary_foundry.models.roformer_v2.network import RoFormerV2
from rotary_foundry.models.roformer_v2.shape import Shape
from tests.models.peers import pad, sharpened

FAMILY = find_family("roformer_v2")
SMALL = {
    "vocab_size": 192,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "norm_eps": 1e-12,
    "init_depth_exponent": 0.5,
}
KNOBS = {"rope_theta": 10_000.0, "residual_scale": 1.0, "hidden_dropout": 0.0}


def small_shape(**changes: int | float) -> Shape:
    return Shape(**SMALL | changes)


def our_network(seed: int = 0, attn_implementation: str = "auto", **changes: int | float) -> RoFormerV2:
    """Build a small network with weights large enough for sharp attention; changes: of the shape, or of the knobs."""
    knobs = KNOBS | {name: changes.pop(name) for name in KNOBS & changes.keys()}
    network = RoFormerV2(small_shape(**changes), knobs, attn_implementation)
    return sharpened(network, seed)


def junnyu_tensors(network: RoFormerV2) -> dict[str, Tensor]:
    """A network's parameters as JunnYu's checkpoints have them, by indices written out: pairs lie side by side."""
    shape, state = network.shape, network.state_dict()
    half = shape.head_dim // 2
    rows = [
        head * 2 * half + i + part * half
        for head in range(shape.num_attention_heads)
        for i in range(half)
        for part in (0, 1)
    ]
    tensors = {f"roformer.{name}": value for name, value in state.items() if name.startswith("embeddings.")}
    for layer in range(shape.num_hidden_layers):
        ours, theirs = f"layers.{layer}.", f"roformer.encoder.layer.{layer}."
        query, key, value = state[ours + "attn.Wqkv.weight"].chunk(3)
        tensors |= {
            theirs + "attention.self.query.weight": query[rows],
            theirs + "attention.self.key.weight": key[rows],
            theirs + "attention.self.value.weight": value,
            theirs + "attention.output.dense.weight": state[ours + "attn.Wo.weight"],
            theirs + "intermediate.dense.weight": state[ours + "mlp.Wi.weight"],
            theirs + "output.dense.weight": state[ours + "mlp.Wo.weight"],
        }
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


class GainFreeNorm(nn.Module):
    def __init__(self, eps: float):
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt()


@torch.no_grad()
def their_encoder(ours: RoFormerV2, positions: int = 1024) -> RoFormerModel:
    """transformers' RoFormer with the same weights, in float64, for documents of at most so many tokens."""
    shape = ours.shape
    config = RoFormerConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        hidden_act="relu",
        rotary_value=False,
        type_vocab_size=2,
        max_position_embeddings=positions,
        pad_token_id=0,
    )
    theirs = RoFormerModel(config).double().eval()
    for name, module in list(theirs.named_modules()):
        if isinstance(module, nn.LayerNorm):
            parent, _, child = name.rpartition(".")
            setattr(theirs.get_submodule(parent), child, GainFreeNorm(shape.norm_eps))
    for name, parameter in theirs.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
    tensors = {name.removeprefix("roformer."): value.double() for name, value in junnyu_tensors(ours).items()}
    loaded = theirs.load_state_dict(tensors, strict=False)
    assert not loaded.unexpected_keys
    assert all(name.endswith("bias") or "embed_positions" in name for name in loaded.missing_keys)
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float64) / shape.head_dim
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * 10_000.0**-exponents
    theirs.encoder.embed_positions.weight.copy_(torch.cat([angles.sin(), angles.cos()], dim=1))
    return theirs


def their_hidden_states(
    theirs: nn.Module, input_ids: Tensor, cu_seqlens: Tensor, types: Tensor | None = None
) -> Tensor:
    """Their last hidden states at the real tokens, [tokens, hidden]."""
    batch = pad(input_ids, cu_seqlens)
    if types is not None:
        batch["token_type_ids"] = pad(types, cu_seqlens)["input_ids"]
    return theirs(**batch).last_hidden_state[batch["attention_mask"].bool()]
