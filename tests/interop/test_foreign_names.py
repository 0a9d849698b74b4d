"""No door opens a directory with the random values that transformers gives to tensors that it does not find.

pytorch/pytorch#101107: state_dict() of a compiled model has a prefix, as has that of a distributed one.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from rotary_foundry.data_prep.self_instruct.local_generator import LocalGenerator
from rotary_foundry.evaluation.models import open_model
from rotary_foundry.evaluation.retrieval_models import open_retriever
from rotary_foundry.finetuning.job import load_with_head
from rotary_foundry.interop.sentence_models import load_sentence_model
from rotary_foundry.utils.errors import DataError
from tests.evaluation.decoders import save_decoder
from tests.retrieval import tiny_encoder

__all__ = ["tiny_encoder"]  # a fixture, here too

BODY = {"messages": [{"role": "user", "content": "the"}], "max_tokens": 8, "temperature": 0, "seed": 1}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> Path:
    path = save_decoder(tmp_path_factory.mktemp("models") / "decoder")
    config = json.loads((path / "tokenizer_config.json").read_text())
    config["chat_template"] = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def bert(tiny_encoder, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / "bert"
    AutoTokenizer.from_pretrained(tiny_encoder).save_pretrained(path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    BertForMaskedLM(BertConfig(vocab_size=64, pad_token_id=3, **sizes)).save_pretrained(path)
    return path


def vectors(path: Path) -> np.ndarray:
    return open_retriever(path, None).library.encode(["what is two"])


def reranked(path: Path) -> np.ndarray:
    """The encoder's states; the layer from them to a score is new."""
    model = load_sentence_model(path, CrossEncoder, num_labels=1).model.cpu()
    with torch.inference_mode():
        return model.base_model(torch.tensor([[1, 9, 2]])).last_hidden_state.numpy()


def written(path: Path) -> np.ndarray:
    text = LocalGenerator(path).ask(BODY).text
    return np.frombuffer(text.encode(), np.uint8)


def logits(path: Path) -> np.ndarray:
    model = open_model(path)
    with torch.inference_mode():
        return model.logits([model.framed(*(np.array([one]) for one in (9, 0, 9)))]).cpu().numpy()


def finetuned(path: Path) -> np.ndarray:
    job = {"model": str(path), "labels": ["a", "b"], "type": "sequence", "new_head": False}
    with torch.inference_mode():
        return load_with_head(job).base_model(torch.tensor([[1, 9, 2]])).last_hidden_state.numpy()


DOORS = {
    "retrieval": (vectors, "tiny_encoder"),
    "reranker": (reranked, "tiny_encoder"),
    "self-instruct": (written, "decoder"),
    "evaluate": (logits, "bert"),
    "finetune": (finetuned, "bert"),
}
OF_LAYER_1 = ("layers.1.mlp.Wo.weight", "layers.1.mlp.down_proj.weight", "layer.1.output.dense.weight")


@pytest.fixture(params=DOORS)
def door(request):
    """A function that opens a directory and computes with it, and a sound directory."""
    opened, model = DOORS[request.param]
    return opened, request.getfixturevalue(model)


def renamed(source: Path, target: Path, prefix: str, shards: bool = False) -> Path:
    """A copy of a directory whose tensors have a prefix."""
    shutil.copytree(source, target)
    tensors = {prefix + name: value for name, value in load_file(source / "model.safetensors").items()}
    if not shards:
        save_file(tensors, target / "model.safetensors", {"format": "pt"})
        return target
    (target / "model.safetensors").unlink()
    files = {name: f"part-{number % 2}.safetensors" for number, name in enumerate(sorted(tensors))}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in files if files[name] == file}, target / file, {"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": files}
    (target / "model.safetensors.index.json").write_text(json.dumps(index))
    return target


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_a_prefix_of_another_program_is_removed_and_said(door, prefix, tmp_path, caplog):
    opened, sound = door
    model = renamed(sound, tmp_path / "model", prefix, shards=prefix == "module.")
    assert np.allclose(opened(model), opened(sound), atol=1e-6)
    assert f"model: tensor names are read without wrappers and prefixes: {prefix}" in caplog.text


@pytest.mark.parametrize("prefix", ["net.", "encoder.net.module."])
def test_names_that_are_not_understood_are_refused_by_the_first_that_is_missing(door, prefix, tmp_path):
    opened, sound = door
    with pytest.raises(DataError, match=r"model: no tensor .* which would begin with random values") as refused:
        opened(renamed(sound, tmp_path / "model", prefix))
    assert f"it has, for example, {prefix}" in str(refused.value)


def test_a_tensor_that_is_missing_is_named(door, tmp_path):
    opened, sound = door
    tensors = load_file(sound / "model.safetensors")
    (lost,) = (name for name in tensors if name.endswith(OF_LAYER_1))
    shutil.copytree(sound, tmp_path / "model")
    save_file({name: tensors[name] for name in tensors if name != lost}, tmp_path / "model/model.safetensors")
    with pytest.raises(DataError, match=rf"no tensor ({lost}|{lost.removeprefix('model.')}), which"):
        opened(tmp_path / "model")
