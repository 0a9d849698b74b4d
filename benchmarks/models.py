"""Define the contenders: our three families, and the transformers models that they are compared with.

- Base size: our ModernBERT, transformers' of the same shape, and DeBERTa-v2 with the same vocabulary.
- Small size, because base has eight times the operations: our RoFormerV2, the same with biases and gains, and
  transformers' RoFormer of the same sizes.
- The shape of SmolLM2-135M: our Llama and transformers'.

All have random weights and no dropout (transformers applies ModernBERT's 0.1 at another place). All compute in bf16
under autocast, or in float32 if the processor has no bf16 instructions. A contender takes documents as lists of token
ids and converts them to its model's input: flat for ours, and padded to the longest for transformers', except that
transformers' Llama gets them packed into one row, with a document mask.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    RoFormerConfig,
    RoFormerForMaskedLM,
)

from rotary_foundry.models.family import Shape, find_family
from rotary_foundry.models.modernbert.huggingface_config import SIZES
from rotary_foundry.objectives.objective import IGNORE_INDEX
from rotary_foundry.runs.recipes import load_recipe
from rotary_foundry.utils.processor import has_bf16_instructions

RECIPES = Path(__file__).parents[1] / "yamls/main"
KNOBS = {
    "modernbert": {"rope_theta": 10_000.0, "local_rope_theta": 10_000.0, "attn_out_dropout": 0.0},
    "roformer_v2": {"rope_theta": 10_000.0, "residual_scale": 1.0, "hidden_dropout": 0.0},
    "llama": {"rope_theta": 100_000.0, "rope_factor": 1.0},
}
BF16 = has_bf16_instructions()
DTYPE, PRECISION = (torch.bfloat16, "bf16 under autocast") if BF16 else (torch.float32, "float32")
PAD = 0


@dataclass(frozen=True)
class Documents:
    """Holds `ids` and `labels`, each a list of int64 [tokens of the document]."""

    ids: list[Tensor]
    labels: list[Tensor]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.ids))


def base_shape() -> Shape:
    return load_recipe(RECIPES / "base.yaml").model.shape


def roformer_v2_shape(size: str = "small") -> Shape:
    return load_recipe(RECIPES / f"roformer_v2_{size}.yaml").model.shape


class Ours:
    """Runs our network on a flat sequence, optionally with layers compiled as by `compile_config: {dynamic: true}`."""

    def __init__(self, compiled: bool, shape: Shape | None = None, family: str = "modernbert"):
        ours = find_family(family)
        self.network = ours.network(shape or base_shape(), KNOBS[family])
        for name, parameter in self.network.named_parameters():
            parameter.data = ours.initial_value(name, self.network.shape, seed=0)
        if compiled:
            for layer in self.network.blocks:
                layer.forward = torch.compile(layer.forward, dynamic=True)

    def batch(self, documents: Documents) -> tuple[Tensor, ...]:
        ends = torch.tensor([0, *map(len, documents.ids)]).cumsum(0).to(torch.int32)
        return torch.cat(documents.ids), ends, torch.cat(documents.labels)

    def encode(self, input_ids: Tensor, cu_seqlens: Tensor, labels: Tensor) -> None:
        self.network.hidden_states(input_ids, cu_seqlens)

    def predict(self, input_ids: Tensor, cu_seqlens: Tensor, labels: Tensor) -> None:
        self.network(input_ids, cu_seqlens)

    def loss(self, input_ids: Tensor, cu_seqlens: Tensor, labels: Tensor) -> Tensor:
        loss = self.network(input_ids, cu_seqlens, labels=labels)
        return loss.cross_entropy / loss.tokens


class OursCausal(Ours):
    """Runs our decoder on a flat sequence; the labels are the next tokens of every document."""

    def batch(self, documents: Documents) -> tuple[Tensor, ...]:
        ids, ends, _ = super().batch(documents)
        return ids, ends, torch.cat([next_tokens(document) for document in documents.ids])


class PackedCausal:
    """Runs a transformers decoder on documents in one row; it derives their mask from positions that restart."""

    def __init__(self, network: nn.Module):
        self.network = network

    def batch(self, documents: Documents) -> tuple[Tensor, ...]:
        positions = torch.cat([torch.arange(len(document)) for document in documents.ids])
        labels = torch.cat([next_tokens(document) for document in documents.ids])
        return torch.cat(documents.ids)[None], positions[None], labels[None]

    def encode(self, input_ids: Tensor, position_ids: Tensor, labels: Tensor) -> None:
        self.network.base_model(input_ids=input_ids, position_ids=position_ids, use_cache=False)

    def predict(self, input_ids: Tensor, position_ids: Tensor, labels: Tensor) -> None:
        self.network(input_ids=input_ids, position_ids=position_ids, use_cache=False)

    def loss(self, input_ids: Tensor, position_ids: Tensor, labels: Tensor) -> Tensor:
        return self.network(
            input_ids=input_ids, position_ids=position_ids, labels=labels, shift_labels=labels, use_cache=False
        ).loss


def next_tokens(ids: Tensor) -> Tensor:
    return torch.cat([ids[1:], ids.new_full((1,), IGNORE_INDEX)])


class Padded:
    """Runs a transformers model for masked LM on a padded batch."""

    def __init__(self, network: nn.Module):
        self.network = network

    def batch(self, documents: Documents) -> tuple[Tensor, ...]:
        pad = torch.nn.utils.rnn.pad_sequence
        ids = pad(documents.ids, batch_first=True, padding_value=PAD)
        labels = pad(documents.labels, batch_first=True, padding_value=IGNORE_INDEX)
        mask = pad([torch.ones_like(ids) for ids in documents.ids], batch_first=True)
        return ids, mask, labels

    def encode(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> None:
        self.network.base_model(input_ids=input_ids, attention_mask=attention_mask)

    def predict(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> None:
        self.network(input_ids=input_ids, attention_mask=attention_mask)

    def loss(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        return self.network(input_ids=input_ids, attention_mask=attention_mask, labels=labels).loss


def transformers_modernbert(sparse_prediction: bool = False) -> Padded:
    ours = base_shape()
    config = ModernBertConfig(
        **{name: getattr(ours, name) for name in SIZES},
        global_rope_theta=10_000.0,
        sparse_prediction=sparse_prediction,
        **SPECIAL_TOKENS,
    )
    return Padded(ModernBertForMaskedLM._from_config(config, attn_implementation="sdpa"))


def deberta() -> Padded:
    """Build a DeBERTa-v2 in DeBERTa-v3-base's shape, with our vocabulary size."""
    config = DebertaV2Config(
        vocab_size=base_shape().vocab_size,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        relative_attention=True,
        position_buckets=256,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        max_relative_positions=-1,
        type_vocab_size=0,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=PAD,
    )
    return Padded(DebertaV2ForMaskedLM(config))


def roformer_v2(compiled: bool = False) -> Ours:
    return Ours(compiled, roformer_v2_shape(), "roformer_v2")


def roformer_v2_with_biases_and_gains() -> Ours:
    contender = roformer_v2()
    add_biases_and_gains(contender.network)
    return contender


def add_biases_and_gains(network: nn.Module) -> None:
    """Give RoFormerV2, or a layer of it, the biases and the layer norms of RoFormer, the first version.

    A layer's two norms share a gain and an offset, which takes as long as two of each. The output has no bias.
    """
    for module in list(network.modules()):
        if isinstance(module, nn.Linear):
            module.bias = nn.Parameter(torch.zeros(module.out_features))
        for name, child in module.named_children():
            if isinstance(child, nn.RMSNorm):
                setattr(module, name, nn.LayerNorm(child.normalized_shape, child.eps))


def transformers_roformer() -> Padded:
    """Build transformers' RoFormer, the first version, in RoFormerV2's sizes."""
    ours = roformer_v2_shape()
    config = RoFormerConfig(
        vocab_size=ours.vocab_size,
        hidden_size=ours.hidden_size,
        intermediate_size=ours.intermediate_size,
        num_hidden_layers=ours.num_hidden_layers,
        num_attention_heads=ours.num_attention_heads,
        max_position_embeddings=1024,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=PAD,
    )
    return Padded(RoFormerForMaskedLM(config))


def llama_shape() -> Shape:
    """Return the shape of SmolLM2-135M."""
    return find_family("llama").Shape(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        norm_eps=1e-5,
        rope_scaling="none",
        original_max_position_embeddings=None,
    )


def transformers_llama() -> PackedCausal:
    ours = llama_shape()
    config = LlamaConfig(
        **{name: getattr(ours, name) for name in (*ours.sizes, "vocab_size", "tie_word_embeddings")},
        rms_norm_eps=ours.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": KNOBS["llama"]["rope_theta"]},
        max_position_embeddings=8192,
    )
    return PackedCausal(LlamaForCausalLM._from_config(config, attn_implementation="sdpa"))


SPECIAL_TOKENS = {
    "pad_token_id": PAD,
    "cls_token_id": 1,
    "bos_token_id": 1,
    "sep_token_id": 2,
    "eos_token_id": 2,
}
Contender = Ours | Padded | PackedCausal
CONTENDERS: dict[str, Callable[[], Contender]] = {
    "ours": lambda: Ours(compiled=False),
    "ours, compiled": lambda: Ours(compiled=True),
    "transformers": transformers_modernbert,
    "transformers, sparse_prediction": lambda: transformers_modernbert(sparse_prediction=True),
    "DeBERTa": deberta,
    "RoFormerV2": roformer_v2,
    "RoFormerV2, compiled": lambda: roformer_v2(compiled=True),
    "RoFormerV2 with biases and gains": roformer_v2_with_biases_and_gains,
    "transformers' RoFormer": transformers_roformer,
    "Llama": lambda: OursCausal(False, llama_shape(), "llama"),
    "Llama, compiled": lambda: OursCausal(True, llama_shape(), "llama"),
    "transformers' Llama": transformers_llama,
}
