"""Tiny Llamas in transformers' form, and a corpus and texts for them."""

from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from rotary_foundry.data_prep.tokenizer import save_trained, train_tokenizer
from tests.evaluation.corpus import texts

VOCABULARY, TRAINED_LENGTH = 384, 256


def save_decoder(path: Path, kind: str = "llama", bias: float | None = None) -> Path:
    """Save a model of random weights, with a tokenizer that puts a token before a text."""
    save_trained(
        train_tokenizer((text for of in texts().values() for text in of), VOCABULARY, causal=True), path, 256, True
    )
    torch.manual_seed(0)
    model = made(kind)
    if bias is not None:
        torch.nn.init.constant_(model.lm_head.weight, bias)
    model.save_pretrained(path)
    return path


def made(kind: str) -> PreTrainedModel:
    special = {"bos_token_id": 0, "eos_token_id": 1, "vocab_size": VOCABULARY, "initializer_range": 0.3}
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=TRAINED_LENGTH, **special))
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
    return LlamaForCausalLM(LlamaConfig(max_position_embeddings=TRAINED_LENGTH, **sizes, **heads, **special))
