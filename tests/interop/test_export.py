"""An exported directory says what its model is, and can be made ready for a classifier."""

import json
import re
import shutil

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer
from typer.testing import CliRunner

from rotary_foundry.cli import app
from rotary_foundry.interop import load_model
from rotary_foundry.interop.export import export_checkpoint
from rotary_foundry.interop.heads import Head
from rotary_foundry.utils.errors import ConfigurationError, DataError
from tests.command import rotary_foundry
from tests.interop.runs import NANO, TOKENS, add_records, make_run
from tests.models.peers import our_network

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
LABELS = ("O", "B-PER", "I-PER")


@pytest.fixture(scope="module")
def network():
    return our_network()


@pytest.fixture
def run(network, tokenizer_dir, tmp_path):
    made = make_run(tmp_path / "run", network.shape, tokenizer_dir.parent, network.state_dict())
    add_records(made)
    return made


def card_of(path) -> ModelCard:
    return ModelCard.load(path / "README.md")


def test_the_card_tells_the_checkpoints_training_and_evaluation_and_nothing_later(run, tmp_path):
    environment = {"packages": {"torch": "2.7.0"}, "python": "3.11.7", "ranks": 3, "commit": "abc123"}
    run.environment.write_text(json.dumps(environment))
    export_checkpoint(run.path, tmp_path / "out")
    card = card_of(tmp_path / "out")
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "fill-mask")
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {"loss": 5.25, "masked_accuracy": 5.25 / 40}
    assert f"{TOKENS:,} token slots" in card.text
    pretrained = NANO.stage_ends["pretrain"]
    assert f"| pretrain | {NANO.at(pretrained).update} | {pretrained:,} | 2 → 6 | 1,024 |" in card.text
    assert "| extend | 6 | 98,304 | 2 | 8,192 |" in card.text
    assert (
        "- pretrain: linear warm-up over 300,000 tokens, constant for 941,088; rows: 2, 4 for 192 updates" in card.text
    )
    assert "- extend: constant for 98,304\n" in card.text
    assert "| extend | 52.5% | 47.5% |" in card.text
    assert "5.5000" in card.text and "5.2500" in card.text and "1.0000" not in card.text
    assert "decay" not in card.text.replace("weight decay", "")
    assert "torch 2.7.0, at commit abc123; last started on 3 processes" in card.text
    assert str(tmp_path) not in card.text


def test_a_run_is_exported_though_its_shards_and_their_tokenizer_are_gone(network, tokenizer_dir, tmp_path):
    corpus = tmp_path / "corpus"
    shutil.copytree(tokenizer_dir, corpus / "tokenizer")
    made = make_run(tmp_path / "run", network.shape, corpus, network.state_dict())
    shutil.rmtree(corpus)
    export_checkpoint(made.path, tmp_path / "out")
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (tokenizer_dir / "tokenizer.json").read_bytes()


def test_an_earlier_checkpoints_card_has_no_evaluation_for_its_name(run, tmp_path):
    run.evaluations.unlink()
    export_checkpoint(run.path, tmp_path / "out")
    assert card_of(tmp_path / "out").data.eval_results is None


def test_an_export_replaces_one_with_our_card_and_no_other_model(run, tmp_path):
    out = tmp_path / "out"
    for _ in range(2):
        export_checkpoint(run.path, out)
    (out / "README.md").write_text("# somebody's model\n")
    with pytest.raises(ConfigurationError, match=r"out: holds README\.md, which is not part of an export"):
        export_checkpoint(run.path, out)
    assert (out / "README.md").read_text() == "# somebody's model\n"


def test_a_broken_record_is_named_with_its_line(run, tmp_path):
    with open(run.metrics, "a") as file:
        file.write("{broken\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 4: expected JSON"):
        export_checkpoint(run.path, tmp_path / "out")
    for text, named in (
        ('{"batch": 1, "token": 1, "loss": 1.0}\n', "batch 1 has no row_length"),
        ('{"batch": 1, "token": 1, "loss": 1.0, "stage": "pretrain", "row_length": 9}\n', "batch 1 has no masked"),
        ('{"batch": 1, "token": 1, "stage": "pretrain", "row_length": 9, "masked_accuracy": 0.5}\n', "has no loss"),
        ("{\n", "line 1: expected JSON"),
    ):
        run.evaluations.write_text(text)
        with pytest.raises(DataError, match=rf"eval\.jsonl[:,] .*{named}"):
            export_checkpoint(run.path, tmp_path / "out")


@pytest.mark.parametrize(
    ("of", "theirs", "task"),
    [
        ("sequence", AutoModelForSequenceClassification, "text-classification"),
        ("token", AutoModelForTokenClassification, "token-classification"),
    ],
)
def test_a_classifiers_directory_is_whole_its_head_pretrained_and_its_classifier_new(
    run, network, tmp_path, of, theirs, task
):
    export_checkpoint(run.path, tmp_path / "out", Head(of, LABELS))
    model, loading = theirs.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading.values())
    card = card_of(tmp_path / "out")
    assert type(model).__name__ in card.text and card.data.pipeline_tag == task
    assert card.data.eval_results is None  # those were the masked language model's
    assert model.config.id2label == dict(enumerate(LABELS))
    assert torch.equal(model.head.dense.weight, network.head.dense.weight)
    assert torch.equal(model.model.layers[3].mlp.Wi.weight, network.model.layers[3].mlp.Wi.weight)
    assert model.classifier.weight.shape == (3, 64) and not model.classifier.bias.any()
    assert 0.5 < model.classifier.weight.std() * 64**0.5 < 1.2  # as transformers draws it, cut off at two sigma
    batch = AutoTokenizer.from_pretrained(tmp_path / "out")(["a b", "c"], padding=True, return_tensors="pt")
    assert model(**batch).logits.isfinite().all()
    with pytest.raises(DataError, match=r"no tensor decoder\.bias"):
        load_model(tmp_path / "out")


def test_a_classifier_is_the_same_each_time(run, tmp_path):
    for name in ("one", "two"):
        export_checkpoint(run.path, tmp_path / name, Head("sequence", LABELS))
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert torch.equal(one["classifier.weight"], two["classifier.weight"])


@pytest.mark.parametrize("labels", [(), ("a", "a"), ("a", "")])
def test_labels_without_names_of_their_own_are_refused(labels):
    with pytest.raises(ConfigurationError, match="expected different names"):
        Head("sequence", labels)


@pytest.mark.parametrize("option", ["--sequence-labels", "--token-labels"])
def test_blanks_around_labels_are_no_part_of_them(run, tmp_path, option):
    out = tmp_path / "out"
    assert CliRunner().invoke(app, ["export", str(run.path), str(out), option, "O, B-PER , I-PER"]).exit_code == 0
    assert json.loads((out / "config.json").read_text())["id2label"] == {"0": "O", "1": "B-PER", "2": "I-PER"}


def test_a_folder_that_cannot_be_written_is_named_in_a_line(run):
    done = rotary_foundry("export", run.path, "/proc/nowhere/export")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: \[Errno \d+\] .*'/proc/nowhere'\n", done.stderr)


def test_a_model_has_one_classifier(run, tmp_path):
    arguments = ["export", str(run.path), str(tmp_path / "out"), "--sequence-labels", "a,b", "--token-labels", "a,b"]
    assert isinstance(CliRunner().invoke(app, arguments).exception, ConfigurationError)
    assert CliRunner().invoke(app, arguments[:-2]).exit_code == 0
    assert load_file(tmp_path / "out/model.safetensors")["classifier.weight"].shape == (2, 64)
