"""Our network and transformers' ModernBERT with the same random weights, and the same documents for both."""

import itertools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from transformers import ModernBertConfig, ModernBertForMaskedLM

from rotary_foundry.models.family import Family, find_family
from rotary_foundry.models.growing import tile_parameter
from rotary_foundry.models.modernbert.network import ModernBert
from rotary_foundry.models.modernbert.shape import Shape
from rotary_foundry.objectives.objective import IGNORE_INDEX

FAMILY = find_family("modernbert")

SMALL = {
    "vocab_size": 192,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,  # layers 0 and 3 attend globally
    "num_attention_heads": 4,
    "global_attn_every_n_layers": 3,
    "local_attention": 128,
    "norm_eps": 1e-5,
}
KNOBS = {"rope_theta": 10_000.0, "local_rope_theta": 10_000.0, "attn_out_dropout": 0.0}


def small_shape(**changes: int | float | None) -> Shape:
    return Shape(**SMALL | changes)


def our_network(
    rope_theta: float = 10_000.0, seed: int = 0, attn_implementation: str = "auto", **changes: int | float | None
) -> ModernBert:
    """Build a small network with weights large enough for sharp attention.

    A wrong mask or theta moves its logits by far more than 1e-4.

    Args:
        changes: of the shape, or of the knobs.
    """
    knobs = KNOBS | {"rope_theta": rope_theta} | {name: changes.pop(name) for name in KNOBS & changes.keys()}
    network = ModernBert(small_shape(**changes), knobs, attn_implementation)
    return sharpened(network, seed)


@torch.no_grad()
def sharpened(network: nn.Module, seed: int) -> nn.Module:
    """Give a network random matrices large enough for sharp attention, and gains near 1."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(1.2 * noise * parameter.shape[-1] ** -0.5 if parameter.dim() == 2 else 1 + 0.1 * noise)
    return network


def thetas(network: ModernBert) -> dict[str, float]:
    """Return the knobs that trained weights are meant for: all but the dropout."""
    return {name: network.knobs[name] for name in FAMILY.knobs_of_weights()}


@torch.no_grad()
def initialise(network: nn.Module, seed: int, family: Family = FAMILY) -> None:
    """Give every parameter of a network that is not sharded its first value."""
    for name, parameter in network.named_parameters():
        parameter.copy_(family.initial_value(name, network.shape, seed))


def tile_all(state: Mapping[str, Tensor], source: Shape, target: Shape, family: Family = FAMILY) -> dict[str, Tensor]:
    """Grow every parameter of a model."""
    return {name: tile_parameter(name, state, family, source, target) for name in target.parameter_shapes()}


def their_network(ours: ModernBert, attn_implementation: str = "sdpa") -> ModernBertForMaskedLM:
    shape = ours.shape
    theirs = ModernBertForMaskedLM._from_config(
        ModernBertConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.num_hidden_layers,
            num_attention_heads=shape.num_attention_heads,
            norm_eps=shape.norm_eps,
            global_attn_every_n_layers=shape.global_attn_every_n_layers,
            global_rope_theta=ours.knobs["rope_theta"],
            local_attention=shape.local_attention or 128,
            local_rope_theta=ours.knobs["local_rope_theta"],
            pad_token_id=0,
            cls_token_id=1,
            bos_token_id=1,
            sep_token_id=2,
            eos_token_id=2,
        ),
        attn_implementation=attn_implementation,
    )
    theirs.load_state_dict(ours.state_dict(), strict=False)
    theirs.tie_weights()
    return theirs


def in_words_of_4(config: dict) -> dict:
    """What a config.json of transformers 5 is as transformers 4 writes it."""
    kinds, ropes = config["layer_types"], config["rope_parameters"]
    later = [index for index, kind in enumerate(kinds) if kind == "full_attention" and index]
    return {key: value for key, value in config.items() if key not in ("layer_types", "rope_parameters")} | {
        "global_attn_every_n_layers": min(later, default=len(kinds)),
        "global_rope_theta": ropes["full_attention"]["rope_theta"],
        "local_rope_theta": ropes["sliding_attention"]["rope_theta"],
    }


def in_words_of_5(config: dict) -> dict:
    """The same without what transformers 5 only passes on."""
    return {key: value for key, value in config.items() if key != "global_attn_every_n_layers"}


def pack(*lengths: int, vocab_size: int = SMALL["vocab_size"], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random documents as our network takes them: input_ids [tokens] and cu_seqlens [documents + 1]."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(3, vocab_size, (sum(lengths),), generator=generator)
    return input_ids, torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


def kept_for_backward(network: nn.Module, forward: Callable, tokens: int, itemsize: int) -> int:
    """Return the bytes of activations that autograd keeps of a forward pass on one document, without any weights.

    Args:
        forward: of the network, on input_ids and cu_seqlens.
        itemsize: 2 for bf16 under autocast, else 4.
    """
    kept = {}
    weights = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
    sizes = {tuple(weight.shape) for weight in network.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()  # held, so that no later one has its address
        cast = {tuple(tensor.shape), tuple(tensor.shape[::-1])} & sizes  # a weight in bf16
        if storage.data_ptr() not in weights and not cast:
            kept[storage.data_ptr()] = storage
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=itemsize == 2),
    ):
        forward(torch.arange(tokens) % SMALL["vocab_size"], torch.tensor([0, tokens], dtype=torch.int32))
    return sum(storage.nbytes() for storage in kept.values())


def masked(input_ids: Tensor) -> Tensor:
    """Labels at every third token, the others are not to be predicted. [tokens] int64"""
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    labels[::3] = input_ids[::3].roll(1)
    return labels


def pad(input_ids: Tensor, cu_seqlens: Tensor) -> dict[str, Tensor]:
    """The same as transformers takes them: input_ids and attention_mask [documents, longest]."""
    documents = input_ids.split(cu_seqlens.diff().tolist())
    padded = torch.nn.utils.rnn.pad_sequence(documents, batch_first=True, padding_value=0)
    real = torch.nn.utils.rnn.pad_sequence([torch.ones_like(document) for document in documents], batch_first=True)
    return {"input_ids": padded, "attention_mask": real}


def their_logits(theirs: ModernBertForMaskedLM, input_ids: Tensor, cu_seqlens: Tensor) -> Tensor:
    """transformers' logits at the real tokens, [tokens, vocabulary]."""
    batch = pad(input_ids, cu_seqlens)
    return theirs(**batch).logits[batch["attention_mask"].bool()]
