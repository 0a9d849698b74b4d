"""An export with a task's head computes what training computed, in plain Python and in transformers."""

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from transformers import AutoModelForMultipleChoice, AutoTokenizer

from rotary_foundry.data.task_file import Task
from rotary_foundry.data_prep.labelled.labelled_example import Choices, Example
from rotary_foundry.data_prep.labelled.span_encoding import (
    PartsTokenizer,
    encode_answers,
    encode_choices,
    encode_entities,
)
from rotary_foundry.finetuning.head_models import load_span_model
from rotary_foundry.interop import load_model
from rotary_foundry.interop.export import export_checkpoint
from rotary_foundry.interop.own_code import register_own_code
from rotary_foundry.utils.errors import ConfigurationError, DataError
from tests.task_corpus import ROW_LENGTH, TASKS, make_row
from tests.task_runs import make_task_run

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
LABELLED = [name for name, task in TASKS.items() if task.kind != "masked_lm"]


@pytest.fixture(scope="module", params=["roformer_v2", "modernbert"])
def made(request, tmp_path_factory):
    """A run, its network with heads, and an export with the head of each task."""
    folder = tmp_path_factory.mktemp(request.param)
    run, network = make_task_run(folder, request.param)
    for task in LABELLED:
        export_checkpoint(run, folder / task, task=task)
    return run, network, folder


def carried_code(directory: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("predict", directory / "predict.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def predictor_of(directory: Path, code: ModuleType):
    return code.Predictor(directory, trust_remote_code=(directory / "modeling_roformer_v2.py").is_file())


def in_training(network: torch.nn.Module, task: str, document: np.ndarray, allowed: np.ndarray) -> torch.Tensor:
    """Compute the logits of a document with the head that training has, whose own `forward` makes a loss of them."""
    cu_seqlens = torch.tensor([0, len(document)], dtype=torch.int32)
    hidden = network.encode(torch.from_numpy(document.astype(np.int64)), cu_seqlens, ROW_LENGTH)
    head = network.heads.of(task)
    if TASKS[task].kind in ("answer", "entities"):
        (scores,) = super(type(head), head).forward(hidden[None], torch.from_numpy(allowed)[None].bool())
        return scores
    (logits,) = super(type(head), head).forward(hidden[:1])
    return logits


@torch.no_grad()
@pytest.mark.parametrize("task", LABELLED)
def test_the_logits_are_those_of_training(made, task):
    _, network, folder = made
    predictor = predictor_of(folder / task, carried_code(folder / task))
    row = make_row(TASKS[task], np.random.default_rng(1))
    ends = row["lengths"].cumsum()[:-1].astype(int)
    documents, allowed = (np.split(row[column], ends) for column in ("tokens", "allowed"))
    found = predictor.scores([document.tolist() for document in documents], [one.tolist() for one in allowed])
    for scores, document, spans in zip(found, documents, allowed, strict=True):
        expected = in_training(network, task, document, spans)
        if expected.ndim == 3:
            scores = scores[:, : len(document), : len(document)]
        torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
    assert predictor.labels == list(TASKS[task].labels or ("LABEL_0",))
    assert predictor.limit == ROW_LENGTH
    if TASKS[task].kind in ("answer", "entities"):
        register_own_code(folder / task)
        assert load_span_model(folder / task, TASKS[task].kind)  # as the directory of a fine-tuned model
    else:
        assert type(predictor.model).__name__.endswith("ForSequenceClassification")
        assert "`AutoModelForSequenceClassification` computes" in (folder / task / "README.md").read_text("utf-8")


def test_predict_py_runs_the_modeling_file_only_if_it_is_told_to(made, tmp_path):
    _, _, folder = made
    shutil.copytree(folder / "topic", tmp_path / "topic")
    own = tmp_path / "topic/modeling_roformer_v2.py"
    carries = own.is_file()
    own.write_text("raise SystemExit('this was run')")
    config = json.loads((tmp_path / "topic/config.json").read_text())
    auto_map = {
        name: f"modeling_roformer_v2.Any{name}" for name in ("AutoConfig", "AutoModelForSequenceClassification")
    }
    (tmp_path / "topic/config.json").write_text(json.dumps({"auto_map": auto_map} | config))

    def predict(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, tmp_path / "topic/predict.py", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | alone, check=False)

    alone = {"PYTHONPATH": "", "HF_HOME": str(tmp_path / "cache")}
    plain, trusting = predict("a text"), predict("--trust-remote-code", "a text")
    assert "this was run" in trusting.stderr
    assert "this was run" not in plain.stderr
    if carries:
        assert "trust_remote_code=True" in plain.stderr.splitlines()[-1]
        assert 'Predictor("the path of this directory", trust_remote_code=True)' in (
            (folder / "topic/README.md").read_text("utf-8")
        )
    else:
        assert plain.stdout.startswith("{")


@torch.no_grad()
def test_transformers_own_class_for_choices_computes_the_head(made):
    _, network, folder = made
    if (folder / "pick/modeling_roformer_v2.py").is_file():
        register_own_code(folder / "pick")
        with pytest.raises(ValueError, match="Unrecognized configuration class"):  # of RoFormerV2 there is none
            AutoModelForMultipleChoice.from_pretrained(folder / "pick")
        return
    model, loading = AutoModelForMultipleChoice.from_pretrained(folder / "pick", output_loading_info=True)
    assert not any(loading.values())
    rows = np.random.default_rng(2).integers(5, 300, (2, 3, 9))  # questions, choices, tokens
    expected = [[in_training(network, "pick", document, document) for document in choices] for choices in rows]
    torch.testing.assert_close(
        model(input_ids=torch.from_numpy(rows)).logits, torch.tensor(expected), rtol=1e-5, atol=1e-5
    )


def test_the_code_of_an_export_needs_nothing_of_ours(made):
    _, _, folder = made
    tree = ast.parse((folder / "topic/predict.py").read_text("utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    needed = {"json", "sys", "pathlib", "torch", "transformers", "safetensors"}
    assert {name.split(".")[0] for name in imported} == needed


class Encoded(Exception):
    """Ends a prediction when its texts are encoded."""


def test_texts_are_encoded_as_for_training(made, monkeypatch):
    _, _, folder = made
    code = carried_code(folder / "topic")

    def rows(task: str, *texts: str, **more):
        seen = []

        def keep(self, rows, allowed=None):
            seen.extend(rows)
            raise Encoded

        with monkeypatch.context() as patch:
            patch.setattr(code.Predictor, "scores", keep)
            patch.setattr(code, "WINDOWS", 1000)
            with pytest.raises(Encoded):
                predictor_of(folder / task, code)(*texts, **more)
        return seen

    tokenizer = AutoTokenizer.from_pretrained(folder / "data/tokenizer", split_special_tokens=True)
    parts = PartsTokenizer(tokenizer, ROW_LENGTH)
    text, passage = "some [SEP] words " * 30, "a passage of many words " * 40
    (row,) = rows("topic", text, "short")
    short = parts("short")[0]
    assert row == parts.join(parts(text)[0][: ROW_LENGTH - 3 - len(short)], short)
    columns, _ = encode_answers([Example("here", ("a question?", passage), None)], parts, training=False)
    assert len(columns["input_ids"]) > 2
    assert rows("find", "a question?", passage) == columns["input_ids"]
    columns, _ = encode_entities([Example("here", text, None)], ["a", "b"], parts)
    assert rows("names", text) == columns["input_ids"]
    choices = Choices((text,), ("yes", "never"), (passage,))
    columns, _ = encode_choices([Example("here", choices, None)], parts)
    assert rows("pick", text, choices=["yes", "never"], after=[passage]) == columns["input_ids"][0]


def test_what_is_predicted_lies_in_the_text(made, monkeypatch):
    _, _, folder = made
    code = carried_code(folder / "names")

    def fixed(self, rows, allowed=None):
        """Score an entity of the second kind, or an answer, from the second to the third token of a passage."""
        first, size = (2 if self.kind == "entities" else allowed[0].index(1, 1) + 1), max(map(len, rows))
        scores = torch.full((len(rows), len(self.labels), size, size), -1.0)
        scores[:, -1, first, first + 1] = 1.0
        return scores

    monkeypatch.setattr(code.Predictor, "scores", fixed)
    text = "words of a text"
    predict = predictor_of(folder / "names", code)
    places = predict._tokens(text)[1]
    assert [text[start:end] for start, end in places if text[start].isspace()] == []
    _, second, third, *_ = places
    span = {"text": text[second[0] : third[1]], "start": second[0], "end": third[1]}
    assert predict(text) == [{"label": "b", **span}]
    assert predictor_of(folder / "find", code)("a question?", text) == span


def test_a_task_of_masked_lm_is_exported_as_the_language_model(made, tmp_path):
    run, network, _ = made
    export_checkpoint(run, tmp_path / "out", task="text")
    assert not (tmp_path / "out/predict.py").exists()
    ids, cu_seqlens = torch.arange(5, 15), torch.tensor([0, 10], dtype=torch.int32)
    torch.testing.assert_close(load_model(tmp_path / "out")(ids, cu_seqlens), network(ids, cu_seqlens))


def test_what_cannot_be_exported_is_refused_by_task_file_and_key(made, tmp_path):
    run, _, folder = made
    with pytest.raises(ConfigurationError, match=r"'topics' is not a task of .*run, which has text, topic, score"):
        export_checkpoint(run, tmp_path / "out", task="topics")
    file = folder / "data/topic/task.json"
    before = file.read_text("utf-8")
    Task("classification", ("odd", "even", "never"), 2.0).write(file.parent)  # the same labels in another order
    try:
        with pytest.raises(DataError, match=r"topic/task\.json: its kind, labels or weight are not those"):
            export_checkpoint(run, tmp_path / "out", task="topic")
    finally:
        file.write_text(before, "utf-8")
    moved = shutil.copytree(run, tmp_path / "moved")
    recipe = (moved / "recipe.yaml").read_text("utf-8")
    (moved / "recipe.yaml").write_text(recipe.replace(f"{folder}/data", f"{tmp_path}/gone"), "utf-8")
    with pytest.raises(DataError, match=r"recipe\.yaml: data\.local: .*gone: no such folder"):
        export_checkpoint(moved, tmp_path / "out", task="topic")
    assert not (tmp_path / "out").exists()


def test_the_configuration_says_the_kind_and_the_labels(made):
    _, _, folder = made
    written = json.loads((folder / "topic/config.json").read_text("utf-8"))
    assert written["task_kind"] == "classification"
    assert written["id2label"] == {"0": "even", "1": "odd", "2": "never"}
