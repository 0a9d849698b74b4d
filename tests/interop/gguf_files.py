"""GGUF files of small Llamas, written by the gguf package in llama.cpp's terms."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFEndian, GGUFValueType, GGUFWriter, TokenType, dequantize, quantize
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from rotary_foundry.models.llama.network import Llama
from tests.models.llama.peers import TRAINED_LENGTH

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXT = "the cat sat on the mat in 1984, and the other cats' mats weren't there; it's 2026 now: that's that."
CHAT = "{% for message in messages %}{{ '<|im_start|>' + message['content'] + '<|im_end|>' }}{% endfor %}"
THEIR_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers.": "blk.",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def byte_level_vocabulary() -> dict[str, Any]:
    """Return a byte-level vocabulary with the special tokens of a model for chats, by the file's keys."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=310, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.token_to_id)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    types = [int(TokenType.CONTROL if token in SPECIAL else TokenType.NORMAL) for token in tokens]
    settings = {"tokens": tokens, "token_type": types, "merges": [" ".join(merge) for merge in merges]}
    settings |= {"model": "gpt2", "pre": "smollm", "unknown_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return {f"tokenizer.ggml.{key}": value for key, value in settings.items()} | {"tokenizer.chat_template": CHAT}


VOCABULARY = byte_level_vocabulary()


def settings_of(network: Llama) -> dict[str, Any]:
    """Return the keys that llama.cpp's converter writes for a network."""
    shape = network.shape
    settings = {
        "block_count": shape.num_hidden_layers,
        "context_length": TRAINED_LENGTH,
        "embedding_length": shape.hidden_size,
        "feed_forward_length": shape.intermediate_size,
        "attention.head_count": shape.num_attention_heads,
        "attention.head_count_kv": shape.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": shape.norm_eps,
        "rope.freq_base": network.knobs["rope_theta"],
        "rope.dimension_count": shape.head_dim,
        "vocab_size": shape.vocab_size,
    }
    return {f"llama.{key}": value for key, value in settings.items()}


def pairs_of_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorder rows of queries or keys as llama.cpp's converter does."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def tensors_of(network: Llama) -> dict[str, np.ndarray]:
    """Return a network's tensors as llama.cpp has them, in float32."""
    heads = {"attn_q": network.shape.num_attention_heads, "attn_k": network.shape.num_key_value_heads}
    tensors = {}
    for name, weight in network.state_dict().items():
        for ours, theirs in THEIR_NAMES.items():
            name = name.replace(ours, theirs)
        values, part = weight.numpy(), name.split(".")[-2]
        tensors[name] = pairs_of_halves(values, heads[part]) if part in heads else values
    return tensors


def write_gguf(
    path: Path,
    tensors: dict[str, np.ndarray],
    settings: dict[str, Any],
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    architecture: str = "llama",
    endianess: GGUFEndian = GGUFEndian.LITTLE,
) -> Path:
    """Write a file with matrices of one type, and everything else as it is. Settings of `...` are left out."""
    writer = GGUFWriter(path, architecture, endianess=endianess)
    for key, value in settings.items():
        if value is not ...:
            writer.add_key_value(key, value, GGUFValueType.get_type(value))
    for name, values in tensors.items():
        if values.ndim == 2:
            writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@torch.no_grad()
def rounded(network: Llama, kind: GGMLQuantizationType) -> Llama:
    """Give a network's matrices the values that they have after quantisation; rows are quantised one by one."""
    for parameter in network.parameters():
        if parameter.dim() == 2:
            parameter.copy_(torch.from_numpy(dequantize(quantize(parameter.numpy(), kind), kind)))
    return network
