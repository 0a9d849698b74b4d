"""Exports are what plain transformers loads; what transformers saves is what we load, or refuse by name."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    pipeline,
)

from rotary_foundry.interop.huggingface import export_model, load_directory
from rotary_foundry.interop.importing import import_model
from rotary_foundry.models.in_transformers import check_stored
from rotary_foundry.utils.errors import ConfigurationError, DataError
from tests.models.peers import (
    FAMILY,
    in_words_of_4,
    in_words_of_5,
    our_network,
    pack,
    their_logits,
    their_network,
    thetas,
)


def export(network, tokenizer_dir, out_dir):
    export_model(network.state_dict(), FAMILY, network.shape, network.knobs, tokenizer_dir, 8192, out_dir)
    return out_dir


@pytest.fixture(scope="module")
def exported(tokenizer_dir, tmp_path_factory):
    network = our_network(160_000.0).eval()
    return network, export(network, tokenizer_dir, tmp_path_factory.mktemp("export") / "model")


@torch.no_grad()
def test_transformers_loads_an_export_and_gives_the_same_logits(exported):
    network, path = exported
    theirs, loading = AutoModelForMaskedLM.from_pretrained(path, output_loading_info=True)
    assert isinstance(theirs, ModernBertForMaskedLM)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert theirs.dtype == torch.float32
    batch = pack(300, 20)
    torch.testing.assert_close(their_logits(theirs.eval(), *batch), network(*batch), rtol=0, atol=1e-4)


def test_the_decoder_is_the_embedding_in_transformers_and_what_it_saves_comes_back(exported, tmp_path):
    """huggingface/transformers#38870, #41038, #48154: tied tensors were loaded apart, or not at all."""
    network, path = exported
    theirs = AutoModelForMaskedLM.from_pretrained(path)
    assert theirs.get_output_embeddings().weight is theirs.get_input_embeddings().weight
    theirs.save_pretrained(tmp_path / "saved")
    AutoTokenizer.from_pretrained(path).save_pretrained(tmp_path / "saved")
    import_model(tmp_path / "saved", tmp_path / "back")
    back = load_directory(tmp_path / "back").state_dict()
    assert back.keys() == network.state_dict().keys()
    assert all(torch.equal(back[name], value) for name, value in network.state_dict().items())


@torch.no_grad()
def test_the_window_reaches_64_tokens_on_each_side_in_transformers_as_here(tokenizer_dir, tmp_path):
    """huggingface/transformers#43030, vllm-project/vllm#44040: it is inclusive; engines were off by one.

    The first layer, which is global, is made to pass its input on, and the second is local.
    """
    network = our_network(num_hidden_layers=2, global_attn_every_n_layers=2).eval()
    for name in ("attn.Wo", "mlp.Wo"):
        network.get_parameter(f"model.layers.0.{name}.weight").zero_()
    path = export(network, tokenizer_dir, tmp_path / "model")
    theirs = AutoModelForMaskedLM.from_pretrained(path).eval()
    ids, place = torch.randint(5, 192, (300,), generator=torch.Generator().manual_seed(0)), 150
    documents = torch.tensor([0, 300], dtype=torch.int32)
    for distance, matters in ((-65, False), (-64, True), (64, True), (65, False)):
        other = ids.clone()
        other[place + distance] = 5 + (ids[place + distance] - 4) % 187
        for logits in (lambda of: network(of, documents), lambda of: theirs(input_ids=of[None]).logits[0]):
            assert torch.equal(logits(ids)[place], logits(other)[place]) is not matters, distance


def test_an_export_asks_for_no_compiler_where_it_is_served(exported):
    """climatepolicyradar/knowledge-graph#1120: transformers 4 compiles by itself, and 5 knows no such key."""
    _, path = exported
    assert json.loads((path / "config.json").read_text())["reference_compile"] is False
    assert "reference_compile" not in ModernBertConfig.from_pretrained(path).to_dict()


def test_an_export_carries_its_tokenizer_and_the_ids_of_its_special_tokens(exported):
    _, path = exported
    tokenizer, config = AutoTokenizer.from_pretrained(path), ModernBertConfig.from_pretrained(path)
    assert tokenizer("a j")["input_ids"] == [1, 5, 14, 2]
    assert (config.cls_token_id, config.bos_token_id, config.sep_token_id, config.eos_token_id) == (1, 1, 2, 2)
    assert config.pad_token_id == 3
    assert config.max_position_embeddings == 8192
    thetas = [config.rope_parameters[kind]["rope_theta"] for kind in ("full_attention", "sliding_attention")]
    assert thetas == [160_000.0, 10_000.0]
    written = json.loads((path / "config.json").read_text())  # as transformers 4 reads it
    assert (written["global_rope_theta"], written["local_rope_theta"]) == (160_000.0, 10_000.0)
    assert written["global_attn_every_n_layers"] == 3
    assert len(pipeline("fill-mask", model=str(path))("a b [MASK] d", top_k=3)) == 3


def put(config: dict, key: str, value: object) -> dict:
    """The config with another value, under the name that transformers has for it in the version that wrote it."""
    kind = {"global_rope_theta": "full_attention", "local_rope_theta": "sliding_attention"}.get(key)
    if kind is None or "rope_parameters" not in config:
        return config | {key: value}
    return config | {"rope_parameters": config["rope_parameters"] | {kind: {"rope_theta": value}}}


@torch.no_grad()
def test_our_own_export_comes_back(exported):
    network, path = exported
    back = load_directory(path)
    assert (back.shape, thetas(back)) == (network.shape, thetas(network))
    assert not back.training
    assert torch.equal(back(*pack(90)), network(*pack(90)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("max_shard_size", ["1GB", "50KB"])
@torch.no_grad()
def test_what_transformers_saves_is_loaded(tmp_path, max_shard_size, dtype):
    their_network(our_network(160_000.0)).to(dtype).save_pretrained(tmp_path, max_shard_size=max_shard_size)
    theirs = AutoModelForMaskedLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ours, batch = load_directory(tmp_path), pack(300, 20)
    assert ours.knobs["rope_theta"] == 160_000.0
    torch.testing.assert_close(ours(*batch), their_logits(theirs, *batch), rtol=0, atol=1e-4)


@pytest.mark.parametrize("in_words", [in_words_of_4, in_words_of_5])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("norm_bias", True),
        ("attention_bias", True),
        ("mlp_bias", True),
        ("classifier_bias", True),
        ("decoder_bias", False),
        ("hidden_activation", "silu"),
        ("tie_word_embeddings", False),
        ("local_rope_theta", -1.0),
        ("rope_scaling", {"rope_type": "linear", "factor": 2.0}),
        ("layer_types", ["sliding_attention", "full_attention"] * 2),
        ("layer_types", ["full_attention"] * 3),
        ("rope_parameters", {"full_attention": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}),
        ("model_type", "bert"),
        ("intermediate_size", 97),
        ("num_hidden_layers", 5),
    ],
)
def test_a_setting_we_have_no_part_for_is_named(tmp_path, key, value, in_words):
    their_network(our_network()).save_pretrained(tmp_path)
    config = in_words(json.loads((tmp_path / "config.json").read_text()))
    (tmp_path / "config.json").write_text(json.dumps(put(config, key, value)))
    named = {"intermediate_size": "mlp.Wi.weight"}
    if in_words is in_words_of_4:  # version 5 has a list of the layers, whose length is compared
        named["num_hidden_layers"] = "layers.4."
    with pytest.raises(DataError, match=named.get(key, key)):
        load_directory(tmp_path)


@pytest.mark.parametrize("in_words", [in_words_of_4, in_words_of_5])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_attention_heads", 5),
        ("num_attention_heads", 64),
        ("num_attention_heads", 0),
        ("hidden_size", "wide"),
        ("hidden_size", None),
        ("global_attn_every_n_layers", 0),
        ("local_attention", -128),
        ("local_attention", 1.5),
        ("local_rope_theta", -10_000.0),
        ("global_rope_theta", 0),
        ("global_rope_theta", None),
        ("global_rope_theta", float("inf")),
        ("norm_eps", float("nan")),
        ("classifier_pooling", "max"),
    ],
)
def test_a_value_that_no_model_can_have_is_refused_with_its_key(tmp_path, key, value, in_words):
    config = in_words(their_network(our_network()).config.to_dict())
    (tmp_path / "config.json").write_text(json.dumps(put(config, key, value)))
    with pytest.raises(DataError, match=rf"config\.json: .*{key}.* '?{value}") as refused:
        load_directory(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("key", "value"), [("global_rope_theta", 5.0), ("local_rope_theta", 5.0), ("global_attn_every_n_layers", 2)]
)
def test_a_value_that_transformers_4_and_5_would_read_differently_is_refused(exported, tmp_path, key, value):
    shutil.copytree(exported[1], tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text()) | {key: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=rf"{key} is {value}, which transformers 4 reads, and \w+ means"):
        load_directory(tmp_path)


@pytest.mark.parametrize("pattern", [{"global_attn_every_n_layers": 1}, {"local_attention": 33}], ids=str)
@torch.no_grad()
def test_every_pattern_of_local_layers_is_loaded_and_comes_back(tokenizer_dir, tmp_path, pattern):
    their_network(our_network()).save_pretrained(tmp_path)
    config = in_words_of_4(json.loads((tmp_path / "config.json").read_text()))
    (tmp_path / "config.json").write_text(json.dumps(config | pattern))
    ours, batch = load_directory(tmp_path), pack(300, 20)
    theirs = [AutoModelForMaskedLM.from_pretrained(tmp_path).eval()]
    theirs.append(AutoModelForMaskedLM.from_pretrained(export(ours, tokenizer_dir, tmp_path / "back")).eval())
    for network in theirs:
        torch.testing.assert_close(ours(*batch), their_logits(network, *batch), rtol=0, atol=1e-4)
    back = load_directory(tmp_path / "back")
    assert (back.shape, thetas(back)) == (ours.shape, thetas(ours))


def test_weights_that_do_not_fit_are_named(tmp_path):
    small = BertConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=1)
    BertForMaskedLM(small).save_pretrained(tmp_path / "bert")
    with pytest.raises(DataError, match="model_type: expected 'modernbert', 'roformer_v2', 'llama', got 'bert'"):
        load_directory(tmp_path / "bert")
    theirs = their_network(our_network())
    theirs.model.save_pretrained(tmp_path / "headless")
    with pytest.raises(DataError, match="no tensor"):
        load_directory(tmp_path / "headless")
    theirs.save_pretrained(tmp_path / "untied")
    tensors = load_file(tmp_path / "untied" / "model.safetensors")
    save_file(tensors | {"decoder.weight": torch.zeros(192, 64)}, tmp_path / "untied" / "model.safetensors")
    with pytest.raises(DataError, match="tied"):
        load_directory(tmp_path / "untied")
    (tmp_path / "untied" / "model.safetensors").unlink()
    with pytest.raises(DataError, match="safetensors"):
        load_directory(tmp_path / "untied")
    with pytest.raises(DataError, match="cannot be read"):
        load_directory(tmp_path / "nowhere")


WRAPPED = {
    "compiled": r"_orig_mod.\1",
    "distributed": r"module.\1",
    "distributed, then compiled": r"_orig_mod.module.\1",
    "in a class of its own": r"model.\1",
    "in a class of its own, distributed": r"module.model.\1",
}


def renamed(source: Path, target: Path, pattern: str, new: str) -> Path:
    """A copy of a directory whose tensors have other names."""
    shutil.copytree(source, target)
    tensors = load_file(source / "model.safetensors")
    save_file({re.sub(pattern, new, name): value for name, value in tensors.items()}, target / "model.safetensors")
    return target


@pytest.mark.parametrize("wrapped", [*WRAPPED, "compiled layer by layer"])
def test_names_are_read_without_what_other_programs_put_around_them(exported, wrapped, tmp_path, caplog):
    """pytorch/pytorch#101107: state_dict() of a compiled model has a prefix; so have those of other wrappers."""
    network, path = exported
    pattern, new = ("^(.*)$", WRAPPED[wrapped]) if wrapped in WRAPPED else (r"(layers\.\d+\.)", r"\1_orig_mod.")
    model = renamed(path, tmp_path / "model", pattern, new)
    loaded = load_directory(model).state_dict()
    assert loaded.keys() == network.state_dict().keys()
    assert all(torch.equal(loaded[name], value) for name, value in network.state_dict().items())
    assert "tensor names are read without wrappers and prefixes: " in caplog.text
    import_model(model, tmp_path / "imported")
    assert load_file(tmp_path / "imported/model.safetensors").keys() == load_file(path / "model.safetensors").keys()


def test_names_that_are_not_understood_are_named(exported, tmp_path):
    _, path = exported
    other = renamed(path, tmp_path / "other", "^(.*)$", r"encoder.\1")
    with pytest.raises(DataError, match=r"no tensor model\.emb.*; the first of \d+ is encoder\.decoder\.bias$"):
        load_directory(other)
    tensors = load_file(path / "model.safetensors")
    save_file(tensors | {"_orig_mod.head.norm.weight": torch.ones(64)}, other / "model.safetensors")
    with pytest.raises(
        DataError, match=r"head\.norm\.weight and .*head\.norm\.weight are one tensor of the model; remove"
    ):
        load_directory(other)


def test_a_config_with_more_layers_than_tensors_is_refused_before_transformers_makes_them(exported, tmp_path):
    _, path = exported
    assert all(name == stored for name, stored in check_stored(path).items())
    shutil.copytree(path, tmp_path / "deep")
    config = json.loads((path / "config.json").read_text())
    (tmp_path / "deep/config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**9}))
    with pytest.raises(
        DataError, match=r"num_hidden_layers: expected at most \d+, the number of tensors there, got 1,"
    ):
        check_stored(tmp_path / "deep")


def test_an_export_replaces_an_earlier_one_and_nothing_else(exported, tokenizer_dir, tmp_path):
    network, _ = exported
    out_dir = tmp_path / "deep" / "model"
    export(network, tokenizer_dir, out_dir)
    other = our_network(seed=1)
    export(other, tokenizer_dir, out_dir)
    assert torch.equal(load_directory(out_dir).head.dense.weight, other.head.dense.weight)
    assert [path.name for path in out_dir.parent.iterdir()] == ["model"]
    (out_dir / "thesis.tex").write_text("")
    with pytest.raises(ConfigurationError, match=r"thesis\.tex"):
        export(network, tokenizer_dir, out_dir)
    assert torch.equal(load_directory(out_dir).head.dense.weight, other.head.dense.weight)


def test_a_tokenizer_that_does_not_fit_is_refused_and_nothing_written(exported, tokenizer_dir, tmp_path):
    network, _ = exported
    small = replace(network.shape, vocab_size=8)
    with pytest.raises(DataError, match="ids up to 14, but the model has a vocabulary of 8"):
        export_model(network.state_dict(), FAMILY, small, network.knobs, tokenizer_dir, 1024, tmp_path / "out")
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        export_model(network.state_dict(), FAMILY, network.shape, network.knobs, tmp_path, 1024, tmp_path / "out")
    assert not (tmp_path / "out").exists()
