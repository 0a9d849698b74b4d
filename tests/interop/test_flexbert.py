"""Checkpoints of ModernBERT's training code come in with their weights and thetas, or are refused by what differs."""

import json

import pytest
import torch
import yaml
from transformers import AutoModelForMaskedLM, AutoTokenizer
from typer.testing import CliRunner

from rotary_foundry.cli import app
from rotary_foundry.interop import load_model, open_weights
from rotary_foundry.interop.importing import import_model
from rotary_foundry.models.modernbert.flexbert import open_flexbert
from rotary_foundry.utils.errors import ConfigurationError, DataError
from tests.interop.flexbert import save_with_composer, settings_of
from tests.models.peers import FAMILY, our_network, pack, their_logits, their_network, thetas
from tests.permuted import permuted


@pytest.fixture(scope="module", params=[10_000.0, 160_000.0], ids=["pretraining", "extension"])
def saved(request, tokenizer_dir, tmp_path_factory):
    """A network, and the file that Composer saved of it: as in pretraining, one theta, or as after the extension."""
    network = our_network(request.param)
    folder = tmp_path_factory.mktemp("composer")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    return network, save_with_composer(their_network(network), settings_of(network), tokenizer, folder)


@torch.no_grad()
def test_a_composer_checkpoint_comes_in_whole_with_what_it_says_of_itself(saved, tmp_path):
    network, path = saved
    result = CliRunner().invoke(app, ["import", str(path), str(tmp_path / "out")])
    assert result.exit_code == 0, result.exception
    # its moments are not taken, and phase 2 has a clock of its own (asafam/HebrewModernBERT@f884314)
    assert "not taken: the optimizer's moments and the clock; a run that begins from this model makes" in result.output
    family, shape, weights = open_weights(tmp_path / "out")
    assert (family, shape, thetas(load_model(tmp_path / "out"))) == (FAMILY, network.shape, thetas(network))
    for name, value in network.state_dict().items():
        assert torch.equal(weights[name], value), name
    theirs = AutoModelForMaskedLM.from_pretrained(tmp_path / "out").eval()
    expected = their_logits(their_network(network).eval(), *pack(300, 20))
    assert expected.isfinite().all()  # what their converter makes of a pretraining checkpoint is NaN
    for logits in (their_logits(theirs, *pack(300, 20)), load_model(tmp_path / "out")(*pack(300, 20))):
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    assert theirs.config.max_position_embeddings == 512  # the tokenizer's, for want of another word
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("a j")["input_ids"] == [1, 5, 14, 2]
    assert path.name in (tmp_path / "out/README.md").read_text()


def test_a_tokenizer_that_is_not_the_files_own_is_refused(saved, tokenizer_dir, tmp_path):
    _, path = saved
    other = permuted(tokenizer_dir, tmp_path / "other")
    with pytest.raises(DataError, match=rf"'d', and 'b' to the model; leave out --tokenizer: {path} has its own"):
        import_model(path, tmp_path / "out", tokenizer=other)
    import_model(path, tmp_path / "out", tokenizer=tokenizer_dir)


def bare(network, path, rename=lambda name: name, **changes):
    """The weights alone, as `save_weights_only` leaves them without a configuration."""
    tensors = their_network(network).state_dict() | changes
    names = {
        name: name.replace("model.layers", "model.encoder.layers").replace("model.", "bert.", 1) for name in tensors
    }
    model = {rename(f"model.{names[name]}"): value for name, value in tensors.items() if value is not None}
    torch.save({"state": {"model": model}}, path)
    return path


def recipe_of(settings, path):
    path.write_text(
        yaml.safe_dump({"max_seq_len": 1024, "width": 64, "loader": "${absent}", "model": {"model_config": settings}})
    )
    return path


@torch.no_grad()
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"num_attention_heads": 2, "vocab_size": 200},
        {"global_attn_every_n_layers": 1, "local_attention": None},
        {"local_rope_theta": 5.0, "norm_eps": 1e-4},
    ],
    ids=str,
)
@pytest.mark.parametrize("padding", ["padded", "unpadded"])
def test_a_bare_file_comes_in_by_the_yaml_of_its_training(tokenizer_dir, tmp_path, shape, padding):
    network = our_network(10_000.0, **shape).eval()
    norm = {"norm_kwargs": {"eps": network.shape.norm_eps, "bias": False}, "normalization": "triton_layernorm"}
    said = {"attention_layer": f"{padding}_rope", "bert_layer": "compile_prenorm", "hidden_size": "${width}"}
    settings = settings_of(network, padding=padding, **said, **norm)
    import_model(
        bare(network, tmp_path / "w.pt"), tmp_path / "out", recipe_of(settings, tmp_path / "r.yaml"), tokenizer_dir
    )
    back = load_model(tmp_path / "out")
    assert (back.shape, thetas(back)) == (network.shape, thetas(network))
    torch.testing.assert_close(back(*pack(300, 20)), network(*pack(300, 20)), rtol=0, atol=1e-5)
    assert json.loads((tmp_path / "out/config.json").read_text())["max_position_embeddings"] == 1024


def test_nothing_is_assumed_of_a_file_that_does_not_say(tokenizer_dir, tmp_path):
    network = our_network()
    path = bare(network, tmp_path / "w.pt")
    with pytest.raises(ConfigurationError, match=r"w\.pt: its configuration: no num_attention_heads; .* --recipe"):
        open_flexbert(path)
    recipe = recipe_of(settings_of(network), tmp_path / "r.yaml")
    with pytest.raises(ConfigurationError, match="--tokenizer"):
        import_model(path, tmp_path / "out", recipe)
    for text in ("- a\n", "a: [\n", "model: 3\n", "max_seq_len: 3\n"):
        (tmp_path / "r.yaml").write_text(text)
        with pytest.raises(ConfigurationError, match=r"r\.yaml"):
            import_model(path, tmp_path / "out", recipe, tokenizer_dir)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention_layer", "rope_parallel"),
        ("attention_layer", None),
        ("bert_layer", "postnorm"),
        ("embedding_layer", "absolute_pos"),
        ("mlp_layer", "mlp"),
        ("normalization", "rmsnorm"),
        ("hidden_act", "silu"),
        ("head_pred_act", "silu"),
        ("final_norm", False),
        ("skip_first_prenorm", False),
        ("attn_qkv_bias", True),
        ("mlp_out_bias", True),
        ("decoder_bias", False),
        ("norm_kwargs", {"eps": 1e-5}),
        ("rotary_emb_interleaved", True),
        ("rotary_emb_dim", 8),
        ("rotary_emb_base", 0),
        ("global_attn_every_n_layers", -1),
        ("num_attention_heads", 5),
        ("num_attention_heads", "${nothing}"),
        ("hidden_size", 128),
        ("num_hidden_layers", 22),
        ("initial_mlp_layer", "mlp"),
    ],
)
def test_a_part_of_flexbert_that_ours_has_not_is_named(tmp_path, key, value):
    network = our_network()
    settings = settings_of(network, **{key: value})
    if value is None:
        del settings[key]
    recipe = recipe_of(settings, tmp_path / "r.yaml")
    with pytest.raises(
        (DataError, ConfigurationError), match=rf"r\.yaml: .*{'nothing' if value == '${nothing}' else key}"
    ):
        open_flexbert(bare(network, tmp_path / "w.pt"), recipe)


def test_what_differs_in_the_weights_is_named_as_it_is_called_there(tmp_path):
    network = our_network()
    recipe = recipe_of(settings_of(network), tmp_path / "r.yaml")

    def message(**changes):
        with pytest.raises(DataError) as refused:
            list(open_flexbert(bare(network, tmp_path / "w.pt", **changes), recipe).weights.values())
        return str(refused.value)

    bias = {"model.layers.2.attn.Wqkv.bias": torch.zeros(192)}
    assert "state.model.model.bert.encoder.layers.2.attn.Wqkv.bias; its only biases" in message(**bias)
    first_norm = {"model.layers.0.attn_norm.weight": torch.ones(64)}
    assert "no part for the tensor state.model.model.bert.encoder.layers.0.attn_norm" in message(**first_norm)
    assert "no tensor state.model.model.decoder.bias" in message(**{"decoder.bias": None})
    assert "no tensor state.model.model.bert.final_norm.weight" in message(**{"model.final_norm.weight": None})
    narrow = {"model.layers.1.mlp.Wo.weight": torch.zeros(64, 95)}
    assert "state.model.model.bert.encoder.layers.1.mlp.Wo.weight: expected shape [64, 96], got [64, 95]" in message(
        **narrow
    )
    other = {"decoder.weight": torch.zeros(192, 64)}
    assert "state.model.model.decoder.weight differs" in message(**other)
    diverged = {"head.dense.weight": torch.full((64, 64), torch.nan)}
    assert "state.model.model.head.dense.weight has 4,096 values" in message(**diverged)
    assert "no matrix state.model.model.bert.embeddings" in message(rename=lambda name: name.removeprefix("model."))


def test_a_tokenizer_or_a_yaml_of_something_else_is_refused(saved, tmp_path):
    content = torch.load(saved[1], weights_only=False)
    files = content["state"]["integrations"]["huggingface"]["tokenizer"]
    files["tokenizer.json"]["content"] = torch.zeros(1)
    torch.save(content, path := tmp_path / "w.pt")
    with pytest.raises(DataError, match="the content of its tokenizer is not JSON: Object of type Tensor"):
        open_flexbert(path)
    for text in ("[" * 2000, "when: 2026-02-31\n", "[a, b]"):
        (tmp_path / "training.yaml").write_text(text)
        with pytest.raises(ConfigurationError, match=r"training\.yaml: "):
            open_flexbert(path, tmp_path / "training.yaml")


@pytest.mark.parametrize(
    "content", [3, {}, {"state": 3}, {"state": {"model": None}}, {"state": {"model": {1: 2}}}], ids=str
)
def test_a_file_of_something_else_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(DataError, match="not a checkpoint of ModernBERT's training code"):
        open_flexbert(tmp_path / "w.pt")
