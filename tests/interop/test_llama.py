"""Llamas come in from transformers' directories, and go out so that it computes the same."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from rotary_foundry.interop import load_model
from rotary_foundry.interop.heads import Head
from rotary_foundry.interop.huggingface import export_model, open_directory
from rotary_foundry.interop.importing import import_model
from rotary_foundry.runs.trained_state import read_source
from rotary_foundry.utils.errors import DataError
from tests.models.llama.peers import FAMILY, SCALED, TRAINED_LENGTH, our_network, their_logits, their_network
from tests.models.peers import pack

SCALINGS = {"none": {"rope_theta": 500_000.0}} | SCALED


def export(network, tokenizer, out_dir, head=None) -> Path:
    state = network.state_dict()
    export_model(state, FAMILY, network.shape, network.knobs, tokenizer, 4 * TRAINED_LENGTH, out_dir, "card", head)
    return out_dir


def change(directory: Path, **changes) -> None:
    """Set keys of a config.json; `...` removes one."""
    config = json.loads((directory / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def in_words_of_4(directory: Path) -> None:
    """Make a config.json what transformers 4 would have written."""
    rope = json.loads((directory / "config.json").read_text())["rope_parameters"]
    theta = rope.pop("rope_theta")
    change(
        directory,
        rope_parameters=...,
        rope_theta=theta,
        rope_scaling=None if rope == {"rope_type": "default"} else rope,
    )


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("method", SCALINGS)
@torch.no_grad()
def test_an_export_computes_the_same_and_comes_back(llama_tokenizer, tmp_path, method, tied):
    ours = our_network(tie_word_embeddings=tied, **SCALINGS[method]).eval()
    path = export(ours, llama_tokenizer, tmp_path / "model")
    theirs, loading = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert isinstance(theirs, LlamaForCausalLM) and not any(loading.values())
    assert (theirs.config.bos_token_id, theirs.config.eos_token_id, theirs.config.pad_token_id) == (1, 2, None)
    batch = pack(700, 90)
    torch.testing.assert_close(their_logits(theirs.eval(), *batch), ours(*batch), rtol=0, atol=1e-4)
    back, source = load_model(path), read_source(path)
    torch.testing.assert_close(back(*batch), ours(*batch), rtol=0, atol=0 if method != "ntk" else 1e-4)
    assert (source.shape, source.knobs, source.longest_row) == (back.shape, back.knobs, 4 * TRAINED_LENGTH)
    if method == "ntk":
        assert back.shape.rope_scaling == "none" and back.knobs["rope_theta"] == pytest.approx(10_000 * 4 ** (16 / 14))
    else:
        assert (back.shape, back.knobs) == (ours.shape, ours.knobs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@torch.no_grad()
def test_sharded_directories_of_any_dtype_are_imported(llama_tokenizer, tmp_path, dtype, tied):
    theirs = their_network(our_network(tie_word_embeddings=tied, rope_theta=500_000.0))
    theirs.to(dtype).save_pretrained(tmp_path / "theirs", max_shard_size="50KB")
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "theirs", dtype=torch.float32).eval()
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    import_model(tmp_path / "theirs", tmp_path / "ours", tokenizer=llama_tokenizer)
    ours, batch = load_model(tmp_path / "ours"), pack(300, 20)
    assert ours.knobs == {"rope_theta": 500_000.0, "rope_factor": 1.0}
    assert all(parameter.dtype == torch.float32 for parameter in ours.parameters())
    torch.testing.assert_close(ours(*batch), their_logits(theirs, *batch), rtol=0, atol=1e-4)
    card = (tmp_path / "ours/README.md").read_text()
    assert "pipeline_tag: text-generation" in card and 'pipeline("text-generation"' in card
    assert "Masked" not in card and "Classification" not in card


@pytest.mark.parametrize("method", SCALINGS)
def test_directories_of_transformers_4_mean_the_same(llama_tokenizer, tmp_path, method):
    path = export(our_network(**SCALINGS[method]), llama_tokenizer, tmp_path / "model")
    both = FAMILY.huggingface.read_config(path)
    change(path, rope_theta=..., rope_scaling=...)
    assert FAMILY.huggingface.read_config(path) == both
    in_words_of_4(path)
    assert FAMILY.huggingface.read_config(path) == both


def test_the_published_config_of_llama_2_is_read(tmp_path):
    """It has no rope_theta, and later files have no key/value heads where each head has its own."""
    published = {
        "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
        "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 4096,
        "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "pretraining_tp": 1,
        "rms_norm_eps": 1e-05, "rope_scaling": None, "tie_word_embeddings": False, "torch_dtype": "float16",
        "use_cache": True, "vocab_size": 32000,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(published))
    shape, knobs = FAMILY.huggingface.read_config(tmp_path)
    assert shape.parameters == 6_738_415_616 and knobs == {"rope_theta": 10_000.0, "rope_factor": 1.0}


@pytest.fixture
def directory(llama_tokenizer, tmp_path):
    return export(our_network(), llama_tokenizer, tmp_path / "model")


REFUSED = {
    "hidden_act": ("gelu", 'hidden_act: expected "silu"'),
    "attention_bias": (True, "attention_bias: expected false"),
    "mlp_bias": (True, "mlp_bias: expected false"),
    "partial_rotary_factor": (0.5, "partial_rotary_factor: expected 1.0"),
    "head_dim": (32, "head_dim: expected 16, hidden_size / num_attention_heads, got 32"),
    "num_key_value_heads": (3, "num_key_value_heads: 3 key/value heads do not divide 4 heads of queries"),
    "rms_norm_eps": (0, "rms_norm_eps: 0 is not positive"),
    "tie_word_embeddings": ("no", "tie_word_embeddings: 'no' is not of type bool"),
    "vocab_size": (..., "vocab_size is missing"),
    "rope_theta": (777.0, "rope_parameters, which transformers 5 reads, is"),
    "rope_scaling": ({"type": "linear", "factor": 2.0}, "rope_parameters, which transformers 5 reads, is"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_a_setting_of_another_model_is_refused_by_file_and_key(directory, key):
    value, says = REFUSED[key]
    change(directory, **{key: value})
    with pytest.raises(DataError) as refused:
        load_model(directory)
    assert str(refused.value).startswith(f"{directory / 'config.json'}: {says}")


YARN = {"rope_type": "yarn", "factor": 2.0}
ROPES = [
    ({"rope_type": "dynamic", "factor": 2.0}, "rope_type: expected default, linear or yarn, got 'dynamic'"),
    ({"rope_type": "llama3", "factor": 8.0}, "rope_type: expected default, linear or yarn, got 'llama3'"),
    ({"type": ["linear"]}, "rope_type: expected default, linear or yarn, got ['linear']"),
    ({"type": "linear"}, "factor: None is not a finite number of at least 1"),
    ({"type": "linear", "factor": 0.5}, "factor: 0.5 is not"),
    ({"rope_type": "default", "rope_theta": 1}, "rope_theta: 1 is not a finite number above 1"),
    ({"rope_type": "default", "factor": 2.0}, "factor is not supported for rope_type default"),
    ({"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}, "partial_rotary_factor is not supported"),
    (YARN | {"beta_fast": 16}, "beta_fast: expected 32, as our network has no other, got 16"),
    (YARN | {"attention_factor": 1.0}, "attention_factor: expected null"),
    (YARN | {"truncate": False}, "truncate: expected true"),
    (["yarn"], "expected a mapping, got ['yarn']"),
]


@pytest.mark.parametrize("place", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize(("rope", "says"), ROPES, ids=lambda value: str(value)[:40])
def test_positions_that_we_would_compute_otherwise_are_refused_by_file_and_key(directory, place, rope, says):
    change(directory, rope_theta=..., rope_scaling=..., rope_parameters=...)
    change(directory, **{place: rope})
    with pytest.raises(DataError) as refused:
        load_model(directory)
    assert str(refused.value).startswith(f"{directory / 'config.json'}: {place}: {says}")


def test_yarn_without_an_original_length_has_that_of_the_config(directory):
    """As in transformers; the authors of YaRN also wrote a key that it ignores."""
    change(directory, rope_theta=..., rope_scaling=YARN | {"finetuned": True}, rope_parameters=...)
    shape, knobs = FAMILY.huggingface.read_config(directory)
    assert (shape.original_max_position_embeddings, knobs["rope_factor"]) == (4 * TRAINED_LENGTH, 2.0)


def test_a_stored_copy_of_a_tied_output_is_accepted_if_it_is_equal(llama_tokenizer, tmp_path):
    path = export(our_network(tie_word_embeddings=True), llama_tokenizer, tmp_path / "model")
    tensors = load_file(path / "model.safetensors")
    copy = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors | {"lm_head.weight": copy}, path / "model.safetensors")
    assert "lm_head.weight" not in open_directory(path)[2]
    save_file(tensors | {"lm_head.weight": 2 * copy}, path / "model.safetensors")
    with pytest.raises(DataError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight, to which ours"):
        load_model(path)
    change(path, tie_word_embeddings=False)
    assert torch.equal(load_model(path).lm_head.weight, 2 * copy)
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(DataError, match=r"no tensor lm_head\.weight"):
        load_model(path)


def test_tensors_of_another_architecture_are_refused_by_file_and_name(directory):
    tensors = load_file(directory / "model.safetensors")
    save_file(tensors | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}, directory / "model.safetensors")
    with pytest.raises(
        DataError, match=r"model: our model has no part for the tensor model\.layers\.0\.self_attn\.q_p"
    ):
        load_model(directory)


def test_tokenizers_and_classifiers_that_do_not_fit_are_refused(tokenizer_dir, llama_tokenizer, tmp_path):
    config = json.loads((export(our_network(), tokenizer_dir, tmp_path / "bert") / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 3)  # [CLS], [SEP], [PAD]
    for role in ("bos", "eos"):
        path = tmp_path / f"without_{role}"
        PreTrainedTokenizerFast.from_pretrained(llama_tokenizer, **{f"{role}_token": None}).save_pretrained(path)
        other = {"bos": "cls", "eos": "sep"}[role]
        with pytest.raises(DataError, match=f"{path}: the tokenizer has no {role}_token and no {other}_token"):
            export(our_network(), path, tmp_path / "out")
    with pytest.raises(DataError, match="a Llama with a classifier is not supported"):
        export(our_network(), llama_tokenizer, tmp_path / "out", Head("token", ("O", "B")))
    assert not (tmp_path / "out").exists()
