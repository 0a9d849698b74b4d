"""RoFormerV2 comes in from JunnYu's and bert4keras's checkpoints, and goes out so that no wrong class computes it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    RoFormerConfig,
    RoFormerForMaskedLM,
    pipeline,
)

from rotary_foundry.interop import load_model
from rotary_foundry.interop.heads import Head
from rotary_foundry.interop.huggingface import export_model, load_directory
from rotary_foundry.interop.importing import import_model
from rotary_foundry.utils.errors import ConfigurationError, DataError
from tests.interop.tensorflow_checkpoint import made_by
from tests.models.peers import pack, pad, their_logits
from tests.models.roformer_v2_peers import (
    FAMILY,
    junnyu_tensors,
    our_network,
    their_encoder,
    their_hidden_states,
)

TENSORFLOW = Path(__file__).parent / "tensorflow_checkpoint"
JUNNYU = {
    "model_type": "roformer",
    "norm_type": "rms_norm",
    "use_bias": False,
    "rotary_value": False,
    "hidden_act": "relu",
    "layer_norm_eps": 1e-12,
    "vocab_size": 192,
    "embedding_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "type_vocab_size": 2,
    "max_position_embeddings": 512,
}


def export(network, tokenizer_dir, out_dir, head=None):
    export_model(network.state_dict(), FAMILY, network.shape, network.knobs, tokenizer_dir, 512, out_dir, head=head)
    return out_dir


@pytest.fixture(scope="module")
def network():
    return our_network().eval()


@pytest.fixture(scope="module")
def expected(network):
    """Logits of transformers' RoFormer made into a RoFormerV2, in float64."""
    batch = pack(300, 20)
    hidden = their_hidden_states(their_encoder(our_network()), *batch)
    return (hidden @ network.embeddings.word_embeddings.weight.double().T).float().detach()


@pytest.fixture(scope="module")
def exported(network, tokenizer_dir, tmp_path_factory):
    return export(network, tokenizer_dir, tmp_path_factory.mktemp("export") / "model")


@torch.no_grad()
def test_an_export_runs_with_its_own_code_and_gives_the_same_logits(exported, expected):
    theirs, loading = AutoModelForMaskedLM.from_pretrained(exported, trust_remote_code=True, output_loading_info=True)
    assert not any(loading.values())
    assert theirs.dtype == torch.float32
    torch.testing.assert_close(their_logits(theirs.eval(), *pack(300, 20)), expected, rtol=0, atol=1e-4)
    encoder = AutoModel.from_pretrained(exported, trust_remote_code=True).eval()
    assert encoder(**pad(*pack(9))).last_hidden_state.shape == (1, 9, 64)
    assert len(pipeline("fill-mask", model=str(exported), trust_remote_code=True)("a b [MASK] d", top_k=3)) == 3


def test_classes_of_transformers_refuse_an_export(exported, monkeypatch):
    monkeypatch.delitem(CONFIG_MAPPING._extra_content, "roformer_v2", raising=False)  # of tests before
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        AutoModelForMaskedLM.from_pretrained(exported, trust_remote_code=False)
    with pytest.raises(Exception, match="hidden_act"):
        RoFormerForMaskedLM.from_pretrained(exported)


@torch.no_grad()
def test_an_export_has_junnyus_tensors_and_comes_back(network, exported):
    stored, theirs = load_file(exported / "model.safetensors"), junnyu_tensors(network)
    assert stored.keys() == theirs.keys()
    assert all(torch.equal(stored[name], theirs[name]) for name in theirs)
    back = load_directory(exported)
    assert (back.shape, back.knobs) == (network.shape, network.knobs)
    assert torch.equal(back(*pack(90)), network(*pack(90)))


@torch.no_grad()
def test_a_residual_scale_is_folded_into_the_output_projections(tokenizer_dir, tmp_path):
    network = our_network(residual_scale=0.3).eval()
    path = export(network, tokenizer_dir, tmp_path / "model")
    back, batch = load_directory(path), pack(300, 20)
    assert back.knobs["residual_scale"] == 1
    torch.testing.assert_close(back(*batch), network(*batch), rtol=0, atol=1e-4)
    theirs = AutoModelForMaskedLM.from_pretrained(path, trust_remote_code=True).eval()
    torch.testing.assert_close(their_logits(theirs, *batch), network(*batch), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("of", "theirs"),
    [("sequence", AutoModelForSequenceClassification), ("token", AutoModelForTokenClassification)],
)
def test_a_classifiers_directory_is_whole(network, tokenizer_dir, tmp_path, of, theirs):
    export(network, tokenizer_dir, tmp_path / "model", Head(of, ("O", "B", "I")))
    model, loading = theirs.from_pretrained(tmp_path / "model", trust_remote_code=True, output_loading_info=True)
    assert not any(loading.values())
    assert model.classifier.weight.shape == (3, 64) and not model.classifier.bias.any()
    batch = AutoTokenizer.from_pretrained(tmp_path / "model")(["a b", "c"], padding=True, return_tensors="pt")
    labels = torch.tensor([0, 2]) if of == "sequence" else torch.ones_like(batch["input_ids"])
    assert model(**batch, labels=labels).loss.isfinite()


def save_junnyu(folder, tensors, **changes):
    """Save a checkpoint as JunnYu's code does: config.json and pytorch_model.bin."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(JUNNYU | changes))
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


def whole(tensors):
    return tensors | {
        "roformer.encoder.embed_positions.weight": torch.zeros(512, 16),
        "cls.predictions.decoder.weight": tensors["roformer.embeddings.word_embeddings.weight"],
    }


NAMED = {
    "as published": whole,
    "without what is tied or computed": lambda tensors: tensors,
    "compiled": lambda tensors: {f"_orig_mod.{name}": value for name, value in whole(tensors).items()},
    "distributed": lambda tensors: {f"module.{name}": value for name, value in whole(tensors).items()},
    "a bare encoder": lambda tensors: {name.removeprefix("roformer."): value for name, value in tensors.items()},
}


@pytest.mark.parametrize("named", NAMED.values(), ids=NAMED.keys())
@torch.no_grad()
def test_junnyus_checkpoints_are_imported(network, expected, tokenizer_dir, tmp_path, named):
    source = save_junnyu(tmp_path / "source", named(junnyu_tensors(network)))
    import_model(source, tmp_path / "out", tokenizer=tokenizer_dir)
    ours = load_model(tmp_path / "out")
    assert ours.shape == network.shape
    torch.testing.assert_close(ours(*pack(300, 20)), expected, rtol=0, atol=1e-4)
    assert "names of JunnYu's RoFormer_pytorch" in (tmp_path / "out/README.md").read_text()
    assert "trust_remote_code=True" in (tmp_path / "out/README.md").read_text()


@torch.no_grad()
def test_a_directory_of_junnyus_with_safetensors_is_loaded_as_it_is(network, expected, tmp_path):
    save_junnyu(tmp_path, {}).unlink()
    tensors = {name: value.clone() for name, value in whole(junnyu_tensors(network)).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    torch.testing.assert_close(load_model(tmp_path)(*pack(300, 20)), expected, rtol=0, atol=1e-4)


@pytest.fixture
def tensorflow_source(tmp_path):
    """Files that TensorFlow wrote, and the configuration beside them."""
    for path in TENSORFLOW.glob("bert_model.ckpt.*"):
        shutil.copy(path, tmp_path)
    (tmp_path / "bert_config.json").write_text(json.dumps(made_by.CONFIG))
    return tmp_path / "bert_model.ckpt.index"


def test_a_tensorflow_checkpoint_is_imported_without_tensorflow(tensorflow_source, tokenizer_dir, tmp_path):
    """Names and layout are bert4keras's: matrices are [in, out]."""
    import_model(tensorflow_source, tmp_path / "out", tokenizer=tokenizer_dir)
    found, written = load_file(tmp_path / "out/model.safetensors"), made_by.tensors()
    assert len(found) == len(written) - 1  # without Adam's moment
    for layer in range(2):
        for name in made_by.KERNELS:
            theirs = written[f"bert/encoder/layer_{layer}/{name}"]
            ours = found[f"roformer.encoder.layer.{layer}.{name.replace('/', '.').replace('kernel', 'weight')}"]
            assert torch.equal(ours, torch.from_numpy(theirs).T), name
    for table in ("word_embeddings", "token_type_embeddings"):
        theirs = torch.from_numpy(written[f"bert/embeddings/{table}"])
        assert torch.equal(found[f"roformer.embeddings.{table}.weight"], theirs)
    assert load_model(tmp_path / "out").shape.norm_eps == 1e-12
    assert "TensorFlow checkpoint of bert4keras" in (tmp_path / "out/README.md").read_text()


def test_a_vocabulary_beside_a_checkpoint_becomes_its_tokenizer(network, tmp_path):
    source = save_junnyu(tmp_path / "source", junnyu_tensors(network))
    words = ["[PAD]", *"中国人", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ab", "##c", "\u2028", "火"]  # one ends a line
    source.with_name("vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    import_model(source, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("中国 ABC 天火")["input_ids"] == [5, 1, 2, 8, 9, 4, 11, 6]
    assert (tokenizer.pad_token_id, tokenizer.mask_token_id, tokenizer.model_max_length) == (0, 7, 512)
    source.with_name("vocab.txt").write_text("[PAD]\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"vocab\.txt: no token \[UNK\]"):
        import_model(source, tmp_path / "again")
    source.with_name("vocab.txt").write_text("\n".join([*words, *map(str, range(181))]), encoding="utf-8")
    says = r"vocab\.txt: 193 tokens; expected at most 192, vocab_size in .*config\.json$"
    with pytest.raises(DataError, match=says):
        import_model(source, tmp_path / "again")


def refused(source, tmp_path, tokenizer_dir) -> str:
    with pytest.raises((ConfigurationError, DataError)) as error:
        import_model(source, tmp_path / "out", tokenizer=tokenizer_dir)
    assert not (tmp_path / "out").exists()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("norm_type", "layer_norm"),
        ("use_bias", True),
        ("rotary_value", True),
        ("hidden_act", "gelu"),
        ("type_vocab_size", 3),
        ("embedding_size", 32),
        ("rope_scaling", {"rope_type": "linear", "factor": 2.0}),
        ("num_attention_heads", 5),
        ("layer_norm_eps", 0),
    ],
)
def test_a_setting_of_another_model_is_refused_by_file_and_key(network, tokenizer_dir, tmp_path, key, value):
    source = save_junnyu(tmp_path / "source", junnyu_tensors(network), **{key: value})
    assert refused(source, tmp_path, tokenizer_dir).startswith(f"{source.with_name('config.json')}: {key}")


def test_other_pairs_of_an_export_are_refused(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "model")
    config = json.loads((exported / "config.json").read_text()) | {"rotary_interleaved": False}
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"config\.json: rotary_interleaved: expected true, .* got false"):
        load_model(tmp_path / "model")


def test_tensors_that_do_not_fit_are_refused_by_file_and_name(network, tokenizer_dir, tmp_path):
    tensors = junnyu_tensors(network)
    query = "roformer.encoder.layer.1.attention.self.query.weight"
    changes = {
        f"{query}: expected shape [64, 64], got [32, 64]": {query: torch.zeros(32, 64)},
        "roformer.embeddings.word_embeddings.weight: expected shape [192, 64], got [200, 64]": {
            "roformer.embeddings.word_embeddings.weight": torch.zeros(200, 64)
        },
        "a RoFormerV2 of this shape has no tensor roformer.encoder.layer.3.output.dense.weight": {
            "roformer.encoder.layer.3.output.dense.weight": torch.zeros(64, 96)
        },
        "cls.predictions.decoder.weight differs from roformer.embeddings.word_embeddings.weight": {
            "cls.predictions.decoder.weight": torch.zeros(192, 64)
        },
        "value.weight has 4,096 values of 12,288 that are infinite or not a number": {
            query: torch.full((64, 64), torch.nan)
        },
    }
    for says, change in changes.items():
        source = save_junnyu(tmp_path / "source", tensors | change)
        message = refused(source, tmp_path, tokenizer_dir)
        assert message.startswith(str(source)) and says in message, message
    fewer = {name: value for name, value in tensors.items() if ".1.output" not in name}
    source = save_junnyu(tmp_path / "source", fewer)
    assert "no tensor roformer.encoder.layer.1.output.dense.weight" in refused(source, tmp_path, tokenizer_dir)


def test_the_first_version_is_refused_by_its_biases(tokenizer_dir, tmp_path):
    sizes = {key: JUNNYU[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
    first = RoFormerForMaskedLM(RoFormerConfig(**sizes, num_attention_heads=4))
    source = save_junnyu(tmp_path / "source", first.state_dict())
    message = refused(source, tmp_path, tokenizer_dir)
    assert message.startswith(f"{source}: ") and "RoFormerV2 has no biases, and no gains in its norms" in message
    first.save_pretrained(tmp_path / "directory")
    assert "model_type: expected 'modernbert', 'roformer_v2', 'llama', got 'roformer'" in refused(
        tmp_path / "directory", tmp_path, tokenizer_dir
    )


def test_a_checkpoint_needs_its_configuration(network, tokenizer_dir, tmp_path):
    source = save_junnyu(tmp_path / "source", junnyu_tensors(network))
    source.with_name("config.json").unlink()
    assert f"{source}: no config.json or bert_config.json beside it" in refused(source, tmp_path, tokenizer_dir)


def test_broken_tensorflow_files_are_named(tensorflow_source, tokenizer_dir, tmp_path):
    index, data = tensorflow_source, tensorflow_source.with_suffix(".data-00000-of-00001")
    data.write_bytes(data.read_bytes()[:-2000])
    assert refused(index, tmp_path, tokenizer_dir).startswith(f"{data}: ends within bert/")
    data.unlink()
    assert refused(index, tmp_path, tokenizer_dir).startswith(f"{data}: cannot be read")
    content = index.read_bytes()
    endless = content[:-48] + b"\xff" * 40 + content[-8:]
    for broken in (b"", content[:-1], bytes(len(content) - 48) + content[-48:], endless):
        index.write_bytes(broken)
        assert refused(index, tmp_path, tokenizer_dir).startswith(f"{index}: cannot be read as the index")


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (b"\x0c\x01\x12", "cannot be read as the index of a TensorFlow checkpoint: a field of kind 4, which no entry"),
        (b"\x08\x01\x10", "bert/embeddings/word_embeddings: expected shape [32, 8], got []"),  # the shape is a number
    ],
)
def test_an_entry_of_tensorflows_with_a_field_of_another_kind_is_refused(
    tensorflow_source, tokenizer_dir, tmp_path, entry, says
):
    content = tensorflow_source.read_bytes()
    head = b"\x08\x01\x12"  # dtype: float32, shape
    assert head in content
    tensorflow_source.write_bytes(content.replace(head, entry))
    message = refused(tensorflow_source, tmp_path, tokenizer_dir)
    assert message.startswith(f"{tensorflow_source}: ") and says in message


def test_a_tensorflow_checkpoint_of_another_shape_is_refused(tensorflow_source, tokenizer_dir, tmp_path):
    config = tensorflow_source.with_name("bert_config.json")
    config.write_text(json.dumps(made_by.CONFIG | {"intermediate_size": 16}))
    assert refused(tensorflow_source, tmp_path, tokenizer_dir) == (
        f"{tensorflow_source}: bert/encoder/layer_0/intermediate/dense/kernel: expected shape [16, 8], got [12, 8]"
    )
    config.write_text(json.dumps(made_by.CONFIG | {"hidden_act": "gelu"}))
    assert refused(tensorflow_source, tmp_path, tokenizer_dir).startswith(f"{config}: hidden_act")
