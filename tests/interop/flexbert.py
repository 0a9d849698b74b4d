"""A real Composer checkpoint of a model with FlexBERT's parameter names, as ModernBERT's training code saves them.

FlexBERT itself is not installed. What stands for it is transformers' ModernBERT, its modules in a tree of FlexBERT's
names; that the two compute the same from the same weights is what their authors' own converter rests on. Trainer,
optimizer, generators, timestamps, and the configuration and tokenizer that Composer puts in are Composer's.
"""

from pathlib import Path

import torch
from composer import Trainer
from composer.models import HuggingFaceModel
from torch import nn
from transformers import BertConfig, ModernBertForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from rotary_foundry.models.modernbert.network import ModernBert

SETTINGS = {  # as in the YAML of ModernBERT-base's pretraining
    "attention_layer": "rope",
    "attn_out_bias": False,
    "attn_out_dropout_prob": 0.1,
    "attn_qkv_bias": False,
    "bert_layer": "prenorm",
    "decoder_bias": True,
    "embed_norm": True,
    "embedding_layer": "sans_pos",
    "final_norm": True,
    "head_pred_act": "gelu",
    "head_pred_bias": False,
    "head_pred_norm": True,
    "hidden_act": "gelu",
    "initial_attention_layer": None,
    "local_attn_rotary_emb_base": -1,
    "local_attn_rotary_emb_dim": None,
    "mlp_in_bias": False,
    "mlp_layer": "glu",
    "mlp_out_bias": False,
    "norm_kwargs": {"eps": 1e-5, "bias": False},
    "normalization": "layernorm",
    "padding": "unpadded",
    "rotary_emb_base": 10_000.0,
    "rotary_emb_dim": None,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "skip_first_prenorm": True,
    "unpad_embeddings": True,
}


def settings_of(network: ModernBert, **changes: object) -> dict:
    """What FlexBERT would be told to be this network."""
    shape, knobs = network.shape, network.knobs
    sizes = {
        key: getattr(shape, key)
        for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    }
    layers = {
        "sliding_window": shape.local_attention or -1,
        "global_attn_every_n_layers": shape.global_attn_every_n_layers if shape.local_attention else -1,
        "rotary_emb_base": knobs["rope_theta"],
    }
    if knobs["local_rope_theta"] != knobs["rope_theta"]:
        layers["local_attn_rotary_emb_base"] = knobs["local_rope_theta"]
    return SETTINGS | sizes | layers | changes


class FlexBertForMaskedLM(PreTrainedModel):
    """FlexBERT's tree of names over transformers' modules."""

    config_class = BertConfig

    def __init__(self, config: BertConfig, theirs: ModernBertForMaskedLM):
        super().__init__(config)
        self.bert = nn.Module()
        self.bert.embeddings = theirs.model.embeddings
        self.bert.encoder = nn.Module()
        self.bert.encoder.layers = theirs.model.layers
        self.bert.final_norm = theirs.model.final_norm
        self.head = theirs.head
        self.decoder = theirs.decoder


def save_with_composer(
    theirs: ModernBertForMaskedLM, settings: dict, tokenizer: PreTrainedTokenizerBase | None, folder: Path
) -> Path:
    """The checkpoint of a Trainer with this model, after a step of its optimizer."""
    model = HuggingFaceModel(FlexBertForMaskedLM(BertConfig(**settings), theirs), tokenizer=tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    trainer = Trainer(model=model, optimizers=optimizer, device="cpu", progress_bar=False)
    path = trainer.save_checkpoint(str(folder / "ep0-ba0-rank0.pt"))
    trainer.close()
    return Path(path)
