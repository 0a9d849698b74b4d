"""Our network and transformers' ModernBERT with the same random weights, and the same documents for both."""

import itertools

import torch
from torch import Tensor
from transformers import ModernBertConfig, ModernBertForMaskedLM

from rotary_foundry.models.modernbert.network import MaskedLM
from rotary_foundry.objectives.masked_lm import IGNORE_INDEX
from rotary_foundry.recipe.schema import ModelConfig

SMALL = {
    "vocab_size": 192,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,  # layers 0 and 3 attend globally
    "num_attention_heads": 4,
    "global_attn_every_n_layers": 3,
    "local_attention": 128,
    "local_rope_theta": 10_000.0,
    "norm_eps": 1e-5,
    "attn_out_dropout": 0.0,
}


def our_network(rope_theta: float = 10_000.0, seed: int = 0, **shape: float) -> MaskedLM:
    """With weights large enough for sharp attention: a wrong mask or theta moves the logits by far more than 1e-4."""
    network = MaskedLM(ModelConfig(**SMALL | shape), rope_theta)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1.2 * noise * parameter.shape[-1] ** -0.5 if parameter.dim() == 2 else 1 + 0.1 * noise)
    return network


def their_network(ours: MaskedLM, attn_implementation: str = "sdpa") -> ModernBertForMaskedLM:
    config = ours.config
    theirs = ModernBertForMaskedLM._from_config(
        ModernBertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            norm_eps=config.norm_eps,
            global_attn_every_n_layers=config.global_attn_every_n_layers,
            global_rope_theta=ours.model.rope_theta,
            local_attention=config.local_attention or 128,
            local_rope_theta=config.local_rope_theta,
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
