"""Our RoFormerV2 against JunnYu's package, in which the published PyTorch checkpoints are trained and used.

The package is of 2022 and imports four names that transformers has moved or removed. They are put back for the import.
It is installed into a folder of the test's own.
"""

import subprocess
import sys

import pytest
import torch
from torch import nn

from tests.models.peers import pack, pad
from tests.models.roformer_v2_peers import junnyu_tensors, our_network

PACKAGE = "roformer==0.4.3"
MOVED = ("apply_chunking_to_forward", "find_pruneable_heads_and_indices", "prune_linear_layer")


@pytest.fixture
def junnyu(tmp_path, monkeypatch):
    """Its module of models."""
    install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path, PACKAGE]
    installed = subprocess.run(install, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"{PACKAGE} cannot be installed: {installed.stderr.strip().splitlines()[-1]}")
    from transformers import modeling_utils, pytorch_utils

    monkeypatch.setattr(modeling_utils, "SequenceSummary", nn.Module, raising=False)
    for name in MOVED:
        there = getattr(pytorch_utils, name, None)
        monkeypatch.setattr(modeling_utils, name, there or (lambda forward, _, __, x: forward(x)), raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    from roformer import modeling_roformer

    return modeling_roformer


@pytest.mark.long
@torch.no_grad()
def test_logits_are_those_of_junnyus_package(junnyu):
    ours = our_network().double().eval()
    shape = ours.shape
    config = junnyu.RoFormerConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        hidden_act="relu",
        norm_type="rms_norm",
        use_bias=False,
        rotary_value=False,
        layer_norm_eps=shape.norm_eps,
        max_position_embeddings=1024,
        pad_token_id=0,
    )
    theirs = junnyu.RoFormerForMaskedLM(config).double().eval()
    loaded = theirs.load_state_dict(
        {name: value.double() for name, value in junnyu_tensors(ours).items()}, strict=False
    )
    assert not loaded.unexpected_keys
    assert all("embed_positions" in name or "decoder" in name or "bias" in name for name in loaded.missing_keys)
    theirs.cls.predictions.decoder.weight = theirs.roformer.embeddings.word_embeddings.weight
    angles = torch.arange(1024).double()[:, None] * 10_000.0 ** -(torch.arange(0, 16, 2).double() / 16)
    theirs.roformer.encoder.embed_positions.weight.copy_(torch.cat([angles.sin(), angles.cos()], dim=1))
    for lengths in ((37,), (700,), (5, 300, 64, 700, 2)):
        batch = pad(*pack(*lengths))
        expected = theirs(**batch, return_dict=True).logits[batch["attention_mask"].bool()]
        torch.testing.assert_close(ours(*pack(*lengths)), expected, rtol=0, atol=1e-10)
