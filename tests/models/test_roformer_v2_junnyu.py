"""Our RoFormerV2 against JunnYu's package, in which the published PyTorch checkpoints are trained and used.

The package is of 2022. It needs transformers 4, and even there a class that was removed and three functions that have
moved. Both are installed into a folder of the test's own. They run in a process of their own, with the torch that is
here.
"""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models.peers import pack, pad
from tests.models.roformer_v2_peers import junnyu_tensors, our_network

PACKAGES = ("roformer==0.4.3", "transformers==4.57.6", "huggingface-hub<1", "tokenizers>=0.22,<0.23")
LENGTHS = ((37,), (700,), (5, 300, 64, 700, 2))
SCRIPT = """
import json, sys, torch
from safetensors.torch import load_file, save_file
from transformers import modeling_utils, pytorch_utils

modeling_utils.SequenceSummary = torch.nn.Module
for name in ("apply_chunking_to_forward", "find_pruneable_heads_and_indices", "prune_linear_layer"):
    setattr(modeling_utils, name, getattr(pytorch_utils, name))
from roformer import RoFormerConfig, RoFormerForMaskedLM

folder, settings = sys.argv[1], json.loads(sys.argv[2])
model = RoFormerForMaskedLM(RoFormerConfig(**settings)).double().eval()
tensors = load_file(f"{folder}/weights.safetensors")
loaded = model.load_state_dict(tensors, strict=False)
assert not loaded.unexpected_keys, loaded.unexpected_keys
for name in loaded.missing_keys:
    assert any(part in name for part in ("embed_positions", "decoder", "bias")), name
model.cls.predictions.decoder.weight = model.roformer.embeddings.word_embeddings.weight
size = settings["hidden_size"] // settings["num_attention_heads"]
angles = torch.arange(1024).double()[:, None] * 10000.0 ** -(torch.arange(0, size, 2).double() / size)
with torch.no_grad():
    model.roformer.encoder.embed_positions.weight.copy_(torch.cat([angles.sin(), angles.cos()], dim=1))
    batches = load_file(f"{folder}/batches.safetensors")
    logits = {}
    for index in range(len(batches) // 2):
        real = batches[f"{index}.attention_mask"]
        found = model(batches[f"{index}.input_ids"], attention_mask=real, return_dict=True).logits
        logits[str(index)] = found[real.bool()].contiguous()
save_file(logits, f"{folder}/logits.safetensors")
"""


@pytest.mark.long
@pytest.mark.timeout(900)
@torch.no_grad()
def test_logits_are_those_of_junnyus_package(tmp_path):
    install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path / "packages"]
    installed = subprocess.run([*install, *PACKAGES], capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"{', '.join(PACKAGES)} cannot be installed: {installed.stderr.strip().splitlines()[-1]}")
    ours = our_network().double().eval()
    settings = {
        name: getattr(ours.shape, name)
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    }
    settings |= {"hidden_act": "relu", "norm_type": "rms_norm", "use_bias": False, "rotary_value": False}
    settings |= {"layer_norm_eps": ours.shape.norm_eps, "max_position_embeddings": 1024, "pad_token_id": 0}
    save_file({name: value.double() for name, value in junnyu_tensors(ours).items()}, tmp_path / "weights.safetensors")
    batches = {f"{i}.{key}": value for i, each in enumerate(LENGTHS) for key, value in pad(*pack(*each)).items()}
    save_file(batches, tmp_path / "batches.safetensors")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "packages")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path, json.dumps(settings)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = load_file(tmp_path / "logits.safetensors")
    for index, lengths in enumerate(LENGTHS):
        torch.testing.assert_close(ours(*pack(*lengths)), found[str(index)], rtol=0, atol=1e-10)
