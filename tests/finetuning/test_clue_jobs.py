"""CLUE's tasks from the YAML to the submission, on made samples that a RoFormerV2 of two layers learns by heart."""

import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rotary_foundry.data_prep.labelled.clue_files import read_rows
from rotary_foundry.data_prep.labelled.span_encoding import PartsTokenizer, encode_answers, encode_entities
from rotary_foundry.finetuning.example_encoding import prepare
from rotary_foundry.finetuning.finetune_config import load_finetune_config
from rotary_foundry.finetuning.head_batches import HeadCollate
from rotary_foundry.finetuning.head_models import AnswerModel, EntityModel, load_span_model
from rotary_foundry.finetuning.job import run_job
from rotary_foundry.finetuning.search import job_settings
from rotary_foundry.utils.errors import DataError
from tests.data_prep.labelled.clue_samples import CHID_ANSWERS, CMRC2018, ROWS

LEARNT = ["search.lr=[3e-2]", "search.global_train_batch_size=[8]", "search.max_duration=[60ep]", "eval_interval=20ep"]


@pytest.fixture
def run(tmp_path, roformer, clue):
    """Runs the job of a task of clue.yaml in this process; returns its folder and result."""

    def run(name: str, *overrides: str, yaml: str = "clue"):
        settings = [f"model={roformer}", f"data_path={clue}", f"task={name}", *LEARNT]
        settings += [f"tasks.{name}.{setting}" for setting in LEARNT[1:]]
        config = load_finetune_config(f"yamls/finetune/{yaml}.yaml", [*settings, *overrides])
        data = prepare(config, name, tmp_path / name / "data")
        folder = tmp_path / name / "point/seed"
        folder.mkdir(parents=True)
        shared, grid = job_settings(config, name, data)
        (folder / "job.json").write_text(json.dumps(shared | grid[0] | {"seed": 1}))
        return folder, run_job(folder)

    return run


def lines(file) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@torch.no_grad()
def predicted(model_class, directory, type_, columns):
    """What the saved model predicts for these rows."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = model_class(load_span_model(directory, type_), [])
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    batch = HeadCollate(type_, tokenizer.pad_token_id, model.model.encoder.config.num_labels)(rows)
    return model.predictions(model(batch), batch)


def test_classes_are_learned_and_submitted(run):
    folder, result = run("ocnli")
    assert result["metrics"] == {"accuracy": 1.0}
    assert lines(folder / "ocnli_50k_predict.json") == [{"id": "3", "label": "contradiction"}]
    assert (folder / "model/modeling_roformer_v2.py").is_file()


def test_entities_are_learned_saved_and_submitted(run):
    folder, result = run("cluener")
    assert result["metrics"] == {"span_f1": 1.0}
    submitted = lines(folder / "cluener_predict.json")
    assert submitted == [{"id": 3, "text": ROWS["cluener"]["text"], "label": ROWS["cluener"]["label"]}]
    parts = PartsTokenizer(AutoTokenizer.from_pretrained(folder / "model"), 256)
    columns, _ = encode_entities(list(read_rows("cluener", [("a", ROWS["cluener"])])), ["company", "name"], parts)
    (found,) = predicted(EntityModel, folder / "model", "entities", columns)
    assert found.predicted == found.right == {(0, 0, 4), (1, 9, 12)}


def test_answers_are_learned_saved_and_submitted(run):
    folder, result = run("cmrc2018", "tasks.cmrc2018.max_seq_len=24")
    assert result["metrics"] == {"exact_match": 1.0, "answer_f1": 1.0}
    assert json.loads((folder / "cmrc2018_predict.json").read_text()) == {"D1_Q0": "6397千米", "D1_Q1": "长江"}
    parts = PartsTokenizer(AutoTokenizer.from_pretrained(folder / "model"), 64)
    passage = CMRC2018["data"][0]["paragraphs"][0]["context"]
    row = {"context": passage, "question": "长江多长？", "answers": {"text": [], "answer_start": []}}
    columns, _ = encode_answers(list(read_rows("cmrc2018", [("a", row)])), parts, training=False)
    (found,) = predicted(AnswerModel, folder / "model", "answer", columns)
    assert found.text in passage and found.text


def test_choices_are_learned_and_the_best_model_is_transformers(run):
    folder, result = run("c3")
    assert result["metrics"] == {"choice_accuracy": 1.0}
    assert lines(folder / "c310_predict.json") == [{"id": "5", "label": "0"}]
    model, loading = AutoModelForSequenceClassification.from_pretrained(folder / "model", output_loading_info=True)
    assert model.num_labels == 1
    assert not loading["missing_keys"]


def test_idioms_are_learned_and_submitted(run):
    folder, result = run("chid")
    assert result["metrics"] == {"choice_accuracy": 1.0}
    assert json.loads((folder / "chid11_predict.json").read_text()) == CHID_ANSWERS


def test_adamw_learns_too(run):
    _, result = run("cluener", "search.lr=[1e-2]", yaml="clue_adamw")
    assert result["score"] == 1.0


def test_a_kind_that_the_training_has_not_is_refused(run, clue, tmp_path):
    (tmp_path / "cluener").mkdir()
    other = ROWS["cluener"] | {"label": {"game": {"叶老桂": [[9, 11]]}}}
    for split, row in (("train", ROWS["cluener"]), ("dev", other), ("test", {"id": 1, "text": "x"})):
        (tmp_path / f"cluener/{split}.json").write_text(json.dumps(row))
    with pytest.raises(
        DataError, match=r"dev\.json:1: the kind 'game' is not among those of the task \(company, name\)"
    ):
        run("cluener", f"data_path={tmp_path}")
