"""A tiny encoder, pairs that it can learn by heart, and a watch over the network, for tests of retrieval."""

import socket
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import ModernBertConfig, ModernBertForMaskedLM, PreTrainedTokenizerFast

SPECIAL = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven")
ANIMALS = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay", "koi", "lark")
QUERIES = [f"what is {number}" for number in NUMBERS]
DOCUMENTS = [f"it is {animal}" for animal in ANIMALS]


@pytest.fixture
def no_network(monkeypatch) -> list:
    """No connection can be made, and each that is tried is listed: libraries catch what comes of it."""
    tried = []

    def refuse(*arguments, **_):
        tried.append(arguments)
        raise OSError("there is no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tried


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory) -> Path:
    """A ModernBERT of two layers with a vocabulary of the words above, as an export has it."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    words = sorted({word for text in QUERIES + DOCUMENTS for word in text.split()})
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(SPECIAL + words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    named = {f"{token}_token": f"[{token.upper()}]" for token in ("unk", "cls", "sep", "pad", "mask")}
    named |= {"model_max_length": 64, "model_input_names": ["input_ids", "attention_mask"]}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(path)
    save_encoder(path, vocab_size=len(SPECIAL + words), hidden_size=32, max_position_embeddings=64)
    return path


def save_encoder(path: Path, **size: int) -> None:
    torch.manual_seed(0)
    config = ModernBertConfig(
        **{"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "local_attention": 16} | size,
        **{"pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
    )
    ModernBertForMaskedLM(config).save_pretrained(path)
