"""What comes in from transformers: the same logits, in the one form that training and evaluation take."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM, ModernBertConfig, ModernBertForMaskedLM

from rotary_foundry.interop import load_model, open_weights
from rotary_foundry.interop.importing import import_model
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
from tests.permuted import permuted

NARROW = dict(hidden_size=32, intermediate_size=32, num_attention_heads=1, num_hidden_layers=2)


@pytest.mark.parametrize("theta", [pytest.param(10_000.0, marks=pytest.mark.long), 160_000.0])
@torch.no_grad()
def test_logits_are_transformers_on_padded_batches_and_to_8192_tokens_both_ways(tokenizer_dir, tmp_path, theta):
    theirs = their_network(our_network(theta, **NARROW, global_attn_every_n_layers=2)).eval()
    theirs.save_pretrained(tmp_path / "source")
    import_model(tmp_path / "source", tmp_path / "out", tokenizer=tokenizer_dir)
    ours, back = load_model(tmp_path / "out"), AutoModelForMaskedLM.from_pretrained(tmp_path / "out").eval()
    assert ours.knobs["rope_theta"] == theta
    for batch in (pack(300, 20, 1, 129), pack(8192, 20)):
        expected = their_logits(theirs, *batch)
        assert expected.std() > 0.3
        torch.testing.assert_close(ours(*batch), expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(their_logits(back, *batch), ours(*batch), rtol=0, atol=1e-4)
    assert back.config.rope_parameters["full_attention"]["rope_theta"] == theta


@pytest.mark.parametrize(
    "options",
    [
        {"vocab_size": 1000, "num_attention_heads": 2},
        {"norm_eps": 1e-3},
        {"local_attention": 16, "global_attn_every_n_layers": 2},
        {"global_attn_every_n_layers": 1},
        {"global_attn_every_n_layers": 9},
        {"local_rope_theta": 77.0, "global_rope_theta": 770.0},
        {"hidden_size": 96, "num_attention_heads": 8, "intermediate_size": 8},
        {"deterministic_flash_attn": True, "attention_dropout": 0.5, "mlp_dropout": 0.5, "embedding_dropout": 0.5},
        {"classifier_pooling": "mean", "classifier_dropout": 0.5, "sparse_prediction": True, "num_labels": 7},
    ],
    ids=str,
)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@torch.no_grad()
def test_a_model_of_any_size_and_options_that_ours_has_computes_the_same(tokenizer_dir, tmp_path, options, tied):
    torch.manual_seed(0)
    small = dict(vocab_size=192, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4)
    # at 0.3 their own float32 is up to 2.5e-4 from their float64, at 0.2 1.3e-5
    config = ModernBertConfig(
        **small | {"initializer_range": 0.2, "pad_token_id": 0} | options, tie_word_embeddings=tied
    )
    theirs = ModernBertForMaskedLM(config).eval()
    theirs.decoder.weight.copy_(theirs.model.embeddings.tok_embeddings.weight)  # untied, and yet the same
    theirs.save_pretrained(tmp_path / "source", max_shard_size="60KB")
    assert (tmp_path / "source/model.safetensors.index.json").exists()
    batch = pack(300, 20)
    expected = their_logits(theirs, *batch)
    written = json.loads((tmp_path / "source/config.json").read_text())
    for in_words in (in_words_of_4, in_words_of_5):
        (tmp_path / "source/config.json").write_text(json.dumps(in_words(written)))
        import_model(tmp_path / "source", tmp_path / "out", tokenizer=tokenizer_dir)
        torch.testing.assert_close(load_model(tmp_path / "out")(*batch), expected, rtol=0, atol=1e-4)


def test_an_untied_decoder_of_its_own_is_refused(tmp_path):
    ours = our_network()
    theirs = their_network(ours)
    theirs.config.tie_word_embeddings = False
    theirs.decoder.weight = torch.nn.Parameter(torch.randn(ours.shape.vocab_size, ours.shape.hidden_size))
    theirs.save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"decoder\.weight differs from model\.embeddings\.tok_embeddings\.weight"):
        import_model(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("in_words", "keys"),
    [
        (in_words_of_4, {"global_rope_theta", "local_rope_theta", "global_attn_every_n_layers"}),
        (in_words_of_5, {"rope_parameters", "layer_types"}),
    ],
)
@torch.no_grad()
def test_what_transformers_4_and_5_write_is_read(tokenizer_dir, tmp_path, in_words, keys):
    theirs = their_network(our_network(160_000.0)).eval()
    theirs.save_pretrained(tmp_path / "source")
    written = in_words(json.loads((tmp_path / "source/config.json").read_text()))
    assert {key for key in written if "rope" in key or "every" in key or key == "layer_types"} == keys
    (tmp_path / "source/config.json").write_text(json.dumps(written))
    import_model(tmp_path / "source", tmp_path / "out", tokenizer=tokenizer_dir)
    for network in (load_model(tmp_path / "source"), load_model(tmp_path / "out")):
        torch.testing.assert_close(network(*pack(90)), their_logits(theirs, *pack(90)), rtol=0, atol=1e-4)


@torch.no_grad()
def test_local_layers_without_a_theta_of_their_own_have_that_of_the_global_ones(tmp_path):
    theirs = their_network(our_network(77.0, local_rope_theta=77.0)).eval()
    theirs.save_pretrained(tmp_path)
    written = in_words_of_4(json.loads((tmp_path / "config.json").read_text())) | {"local_rope_theta": None}
    (tmp_path / "config.json").write_text(json.dumps(written))
    torch.testing.assert_close(load_model(tmp_path)(*pack(90)), their_logits(theirs, *pack(90)), rtol=0, atol=1e-4)


def test_an_import_is_what_init_from_takes_and_imports_to_itself(tokenizer_dir, tmp_path):
    network = our_network()
    their_network(network).to(torch.bfloat16).save_pretrained(tmp_path / "source")
    import_model(tmp_path / "source", tmp_path / "once", tokenizer=tokenizer_dir)
    import_model(tmp_path / "once", tmp_path / "twice")
    family, shape, weights = open_weights(tmp_path / "twice")
    assert (family, shape, thetas(load_model(tmp_path / "twice"))) == (FAMILY, network.shape, thetas(network))
    for name, value in network.state_dict().items():
        assert torch.equal(weights[name], value.to(torch.bfloat16).float()), name
    names = {path.name for path in (tmp_path / "once").iterdir()}
    assert {path.name for path in (tmp_path / "twice").iterdir()} == names
    card = (tmp_path / "twice/README.md").read_text()
    assert (
        "directory of transformers" in card and f"{sum(p.numel() for p in network.parameters()):,} parameters" in card
    )


@pytest.fixture
def source(tokenizer_dir, tmp_path):
    their_network(our_network()).save_pretrained(tmp_path / "source", max_shard_size="60KB")
    return tmp_path / "source"


def refused(source, tmp_path, **options) -> str:
    with pytest.raises((ConfigurationError, DataError)) as error:
        import_model(source, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_truncated_shard_is_named(source, tmp_path):
    shard = sorted(source.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    assert str(shard) in refused(source, tmp_path)
    shard.write_bytes(b"\xff" * 40)
    assert str(shard) in refused(source, tmp_path)


def test_a_missing_shard_is_named(source, tmp_path):
    shard = sorted(source.glob("*.safetensors"))[1]
    shard.unlink()
    assert f"{shard}: cannot be read" in refused(source, tmp_path)


@pytest.mark.parametrize("index", ["", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', '{"weight_map": {}}'])
def test_a_broken_index_is_one_line(source, tmp_path, index):
    (source / "model.safetensors.index.json").write_text(index)
    assert str(source) in refused(source, tmp_path)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_values_that_are_no_numbers_are_counted_and_named(source, tokenizer_dir, tmp_path, value):
    (shard,) = (path for path in source.glob("*.safetensors") if "head.norm.weight" in load_file(path))
    tensors = load_file(shard)
    tensors["head.norm.weight"][7] = float(value)
    save_file(tensors, shard, metadata={"format": "pt"})
    message = refused(source, tmp_path, tokenizer=tokenizer_dir)
    assert "head.norm.weight has 1 values of 64 that are infinite or not a number" in message


def test_quantised_weights_are_refused(source, tokenizer_dir, tmp_path):
    (shard,) = (path for path in source.glob("*.safetensors") if "head.norm.weight" in load_file(path))
    tensors = load_file(shard)
    save_file(tensors | {"head.norm.weight": tensors["head.norm.weight"].to(torch.int8)}, shard)
    assert "head.norm.weight: expected floating-point numbers, got torch.int8" in refused(
        source, tmp_path, tokenizer=tokenizer_dir
    )


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"norm_bias": True}, "norm_bias"),
        ({"classifier_bias": True}, "classifier_bias"),
        ({"decoder_bias": False}, "decoder_bias"),
        ({"hidden_activation": "silu"}, "hidden_activation"),
        ({"classifier_activation": "relu"}, "classifier_activation"),
    ],
)
def test_an_option_that_ours_has_not_is_named(tmp_path, option, named):
    theirs = ModernBertForMaskedLM(their_network(our_network()).config.__class__(**{**SMALLEST, **option}))
    theirs.save_pretrained(tmp_path / "source")
    message = refused(tmp_path / "source", tmp_path)
    assert f"{named}: expected " in message and f"got {option[named]!r}" in message


SMALLEST = dict(vocab_size=64, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
SMALLEST |= {f"{token}_token_id": 0 for token in ("pad", "cls", "sep", "bos", "eos")}


def test_biases_that_the_config_does_not_tell_are_named_by_their_tensor(source, tmp_path):
    shard = sorted(source.glob("*.safetensors"))[0]
    save_file(load_file(shard) | {"model.layers.1.attn.Wqkv.bias": torch.zeros(192)}, shard)
    message = refused(source, tmp_path)
    assert "no part for the tensor model.layers.1.attn.Wqkv.bias; its only biases: decoder.bias" in message


def test_what_is_no_modernbert_is_refused(tmp_path, tokenizer_dir):
    BertForMaskedLM(BertConfig(**SMALLEST)).save_pretrained(tmp_path / "bert")
    says = "model_type: expected 'modernbert', 'roformer_v2', 'llama', got 'bert'"
    assert says in refused(tmp_path / "bert", tmp_path)
    assert "no config.json; expected a transformers directory" in refused(tokenizer_dir, tmp_path)
    assert "no such file or folder" in refused(tmp_path / "nowhere", tmp_path)


def test_a_tokenizer_that_is_not_the_sources_own_is_refused(source, tokenizer_dir, tmp_path):
    import_model(source, tmp_path / "model", tokenizer=tokenizer_dir)
    own, other = tmp_path / "model", permuted(tokenizer_dir, tmp_path / "other")
    said = refused(own, tmp_path, tokenizer=other)
    assert said.startswith(f"{other}: not the model's tokenizer: id 6 is 'd', and 'b' to the model; leave out --token")
    import_model(own, tmp_path / "again", tokenizer=tokenizer_dir)


def test_a_tokenizer_is_needed_and_the_source_is_not_written_over(source, tokenizer_dir, tmp_path):
    assert "no tokenizer.json" in refused(source, tmp_path)
    assert "--recipe is for a .pt file" in refused(source, tmp_path, recipe="some.yaml", tokenizer=tokenizer_dir)
    with pytest.raises(ConfigurationError, match="is also the source"):
        import_model(source, source, tokenizer=tokenizer_dir)
