"""One fine-tuning: what it learns, keeps and saves, on encoders of four kinds."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from rotary_foundry.finetuning.example_encoding import prepare
from rotary_foundry.finetuning.finetune_config import load_finetune_config
from rotary_foundry.finetuning.job import load_with_head, run_job
from rotary_foundry.finetuning.search import job_settings
from rotary_foundry.models.in_transformers import check_attention_mask
from rotary_foundry.utils.errors import DataError
from tests.finetuning.conftest import opinions

THETAS = {"full_attention": 20_000.0, "sliding_attention": 3_000.0}


@pytest.fixture
def run(write_yaml, tmp_path):
    """Runs the job of the first point of the task `mine` in this process; returns its folder and result."""

    def run(*overrides: str, seed: int = 1, **files):
        config = load_finetune_config(write_yaml(**files), overrides)
        data = prepare(config, "mine", tmp_path / "mine/data")
        folder = tmp_path / "mine/point/seed"
        folder.mkdir(parents=True, exist_ok=True)
        shared, grid = job_settings(config, "mine", data)
        (folder / "job.json").write_text(json.dumps(shared | grid[0] | {"seed": seed}))
        return folder, run_job(folder)

    return run


def accuracy(model, file) -> float:
    """Of a saved model, as transformers alone runs it."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    found = transformers.pipeline("text-classification", model=str(model))([row["text"] for row in rows])
    return sum(one["label"] == row["label"] for one, row in zip(found, rows, strict=True)) / len(rows)


@pytest.mark.parametrize("kind", ["modernbert", "bert", "roberta", "deberta"])
def test_any_encoder_learns_a_task_that_a_word_decides(run, make_model, opinion_files, kind):
    folder, result = run("search.max_duration=[4ep]", "eval_interval=12ba", model=make_model(kind))
    assert result["score"] > 0.9
    assert accuracy(folder / "model", opinion_files[1]) == pytest.approx(result["score"])


def test_what_is_saved_is_read_by_transformers_4_as_well(run, make_model):
    """Which takes its own thetas where it finds none, and knows no TokenizersBackend (mosaicml/streaming#979)."""
    ropes = {kind: {"rope_theta": theta, "rope_type": "default"} for kind, theta in THETAS.items()}
    folder, _ = run("search.max_duration=[1ep]", model=make_model(rope_parameters=ropes))
    config = json.loads((folder / "model/config.json").read_text())
    assert [config[f"{place}_rope_theta"] for place in ("global", "local")] == list(THETAS.values())
    assert config["rope_parameters"] == ropes
    assert json.loads((folder / "model/tokenizer_config.json").read_text())["tokenizer_class"] == (
        "PreTrainedTokenizerFast"
    )


def test_a_regression_learns_numbers(run):
    _, result = run(
        "tasks.mine.type=regression",
        *("tasks.mine.data.label=score", "tasks.mine.metrics=[pearson,spearman]", "search.max_duration=[6ep]"),
    )
    assert result["metrics"].keys() == {"pearson", "spearman"}
    assert result["score"] == result["metrics"]["pearson"] > 0.9


def test_names_are_found_in_sentences(run, tmp_path):
    labels = {"good": "B-GOOD", "bad": "B-BAD"}
    file = tmp_path / "words.conll"
    file.write_text(
        "\n\n".join(
            "\n".join(f"{word} {labels.get(word, 'O')}" for word in row["text"].split()) for row in opinions(64, 1)
        )
    )
    folder, result = run(
        *("tasks.mine.type=token", "tasks.mine.metrics=[entity_f1,word_accuracy]", "search.max_duration=[6ep]"),
        train=file,
        validation=file,
    )
    assert result["metrics"]["entity_f1"] > 0.9
    assert transformers.AutoModelForTokenClassification.from_pretrained(folder / "model").config.id2label == {
        0: "B-BAD",
        1: "B-GOOD",
        2: "O",
    }


def test_the_model_saved_is_that_of_the_best_evaluation(run, opinion_files):
    """A rate that unlearns in the end: the score is that of the evaluation kept, and of the model on disk."""
    folder, result = run("eval_interval=2ba", "search.lr=[3e-2]")
    scores = [evaluation["metrics"]["accuracy"] for evaluation in result["evaluations"]]
    assert result["score"] == max(scores)
    assert result["best_batch"] == result["evaluations"][scores.index(max(scores))]["batch"]
    assert accuracy(folder / "model", opinion_files[1]) == pytest.approx(result["score"])


def test_a_training_that_gains_nothing_for_longer_than_patience_is_ended(run):
    """At a rate that changes no weight, of 18 batches: 10 is the first evaluation more than 6 after that at 2."""
    _, result = run("eval_interval=2ba", "search.lr=[1e-12]", "patience=6ba")
    assert (result["best_batch"], result["batches"]) == (2, 10)


def test_a_seed_decides_everything(run):
    def trained(seed: int) -> tuple[list, dict[str, torch.Tensor]]:
        folder, result = run("search.max_duration=[1ep]", seed=seed)
        return result["evaluations"], load_file(folder / "model/model.safetensors")

    (evaluations, first), (again, same), (_, other) = (trained(seed) for seed in (1, 1, 2))
    assert evaluations == again
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_a_loss_that_is_no_number_ends_the_job_and_has_no_score(run, make_model):
    model = make_model("bert")
    weights = transformers.AutoModelForMaskedLM.from_pretrained(model)
    torch.nn.init.constant_(weights.bert.embeddings.word_embeddings.weight, float("nan"))
    weights.save_pretrained(model)
    _, result = run(model=model)
    assert result["score"] is None
    assert result["batches"] == 1


def test_an_encoder_of_which_a_tensor_is_missing_is_refused(run, make_model):
    """transformers gives it random values and only warns; a pooler or a classifier may be new."""
    model = make_model("bert")
    tensors = load_file(model / "model.safetensors")
    del tensors["bert.encoder.layer.1.output.dense.weight"]
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    says = r"no tensor bert\.encoder\.layer\.1\.output\.dense\.weight, which would begin with random values; it has"
    with pytest.raises(DataError, match=says):
        run(model=model)


@pytest.mark.parametrize("type_", ["sequence", "entities"])
def test_a_model_that_has_no_attention_mask_is_refused(make_model, type_):
    """huggingface/transformers#22308: FNet has none, and its results depend on the longest text of a batch."""
    for kind in ("fnet", "convbert", "deberta"):
        path = make_model(kind)
        job = {"model": str(path), "labels": ["a", "b"], "type": type_, "new_head": False}
        loaded, tokenizer = load_with_head(job), transformers.AutoTokenizer.from_pretrained(path)
        checked = loaded.encoder if type_ == "entities" else loaded
        if kind != "fnet":
            check_attention_mask(path, checked.train(), tokenizer)
            assert checked.training
            continue
        says = r"an attention mask; FNet\w+ is none: padding changes what it computes, so it has no attention mask"
        with pytest.raises(DataError, match=says):
            check_attention_mask(path, checked, tokenizer)


def test_a_job_refuses_a_model_that_has_no_attention_mask(run, make_model):
    with pytest.raises(DataError, match="FNetForSequenceClassification is none: padding changes what it computes"):
        run(model=make_model("fnet"))


@pytest.mark.parametrize(
    ("file", "damage", "says"),
    [
        ("model.safetensors", lambda content: content[:100], "transformers cannot load a model from it"),
        ("model.safetensors", lambda content: b"", "transformers cannot load a model from it"),
        (
            "config.json",
            lambda content: content.replace(b'"bert"', b'"brt"'),
            "transformers cannot load a model from it",
        ),
        (
            "config.json",
            lambda content: content.replace(b'"num_hidden_layers": 2', b'"num_hidden_layers": 9000'),
            "9,000",
        ),
    ],
)
def test_a_model_that_cannot_be_opened_is_named_in_a_sentence(run, make_model, file, damage, says):
    folder, _ = run("search.max_duration=[1ep]")
    (folder / "result.json").unlink()
    model = make_model("bert")
    (model / file).write_bytes(damage((model / file).read_bytes()))
    job = json.loads((folder / "job.json").read_text()) | {"model": str(model)}
    (folder / "job.json").write_text(json.dumps(job))
    with pytest.raises(DataError, match=f"{model}.*{says}"):
        run_job(folder)


def test_a_job_whose_search_is_gone_ends_at_its_next_batch(run):
    folder, _ = run("search.max_duration=[1ep]")
    (folder / "result.json").unlink()
    with pytest.raises(SystemExit, match="the search that started this job has ended"):
        run_job(folder, parent=2**22 + 1)  # more than Linux gives a process
    assert not (folder / "result.json").exists()


def test_a_task_that_starts_from_another_has_a_new_head(run, tmp_path):
    """The encoder of the other's model is kept, its classifier is not, though it has as many labels."""
    folder, _ = run()
    job = json.loads((folder / "job.json").read_text()) | {"model": str(folder / "model"), "lr": 1e-12}
    other = tmp_path / "mine/point/other"
    other.mkdir()
    (other / "job.json").write_text(json.dumps(job | {"new_head": True}))
    run_job(other)
    before, after = (
        transformers.AutoModelForSequenceClassification.from_pretrained(path / "model").state_dict()
        for path in (folder, other)
    )
    changed = {key for key in before if not torch.allclose(before[key], after[key], atol=1e-6)}
    assert changed == {"classifier.weight", "classifier.bias"}
