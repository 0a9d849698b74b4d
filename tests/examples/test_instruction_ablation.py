"""examples/instruction_ablation.py tunes what is missing, and its table has means, intervals and paired differences."""

import json
import runpy
import statistics
import sys
from itertools import product
from pathlib import Path

import pytest

from rotary_foundry.data_prep.corpus_config import CorpusConfig, TokenizerConfig
from rotary_foundry.data_prep.pipeline import prepare
from rotary_foundry.data_prep.readers import SourceConfig
from rotary_foundry.runs.record_files import read_lines
from tests.data_prep.tasks import write_lines
from tests.evaluation.decoders import VOCABULARY, save_decoder

ROOT = Path(__file__).parents[2]
SCRIPT, TEMPLATE = ROOT / "examples/instruction_ablation.py", ROOT / "yamls/data/llama_nano_chat.jinja"
SMALL = [
    *(f"model.vocab_size={VOCABULARY}", "model.hidden_size=32", "model.intermediate_size=48"),
    *("model.num_hidden_layers=2", "model.num_attention_heads=2", "model.num_key_value_heads=1"),
    *("model.tie_word_embeddings=false", "precision=fp32", "progress_bar=false", "stages.tune.duration=2ba"),
    *("stages.tune.row_length=256", "data.sources=[questions_below_64,questions_from_64]"),
    "objective.target_prompts=length>=64",
]
MODELS = [("untuned", None), *product(("answers only", "prompts too"), (1, 2, 3))]
MEASURES = "answer_loss", "answer_accuracy", "f1", "exact_match"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the script with results that are there already; returns the rows of its table and all results."""

    def run(there: list[dict], *arguments: str) -> tuple[list[list[str]], list[dict]]:
        monkeypatch.chdir(tmp_path)
        file = tmp_path / "out/results.jsonl"
        write_lines(file, there)
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), "out", *arguments])
        monkeypatch.syspath_prepend(str(SCRIPT.parent))
        runpy.run_path(str(SCRIPT), run_name="__main__")
        table = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line[:2] == "| "]
        return table, read_lines(file)

    return run


def made(start: str, seed: int | None) -> dict:
    """A result: a seed adds the same to all models, and the loss on prompts takes 0.1 away."""
    value = 1 - 0.1 * (start == "prompts too") + 0.01 * (seed or 0)
    found = {kind: dict.fromkeys(MEASURES, value + (kind == "short")) for kind in ("long", "short")}
    return {"start": start, "seed": seed, "found": found}


def test_finished_results_become_a_table_without_any_tuning(run):
    there = [made(*model) for model in MODELS]
    table, results = run(there)
    assert results == there
    assert table[0] == ["held-out questions", "untuned", "answers only", "prompts too", "prompts too − answers only"]
    assert [row[0].split(":")[0] for row in table[2:]] == ["long"] * 4 + ["short"] * 4
    half = 4.303 * statistics.stdev([0.01, 0.02, 0.03]) / 3**0.5  # Student's t with two degrees of freedom
    for row in table[2:]:
        more = 1 if row[0].startswith("short") else 0
        tuned = [f"{1.02 + more:.3f} ± {half:.3f}", f"{0.92 + more:.3f} ± {half:.3f}"]
        assert row[1:] == [f"{1 + more:.3f}", *tuned, "-0.100 ± 0.000"]


@pytest.mark.long
def test_what_is_missing_is_tuned_asked_and_recorded(run, tmp_path):
    decoder = save_decoder(tmp_path / "runs/llama_nano_long")
    asked = [conversation(kind, number) for kind, number in product(("long", "short"), range(40))]
    write_lines(tmp_path / "train.jsonl", asked)
    write_lines(tmp_path / "data/llama_nano_questions/held_out.jsonl", [asked[3], asked[50], asked[51]])
    source = SourceConfig("jsonl", str(tmp_path / "train.jsonl"), conversations="messages", length_bands=[64])
    tokenizer = TokenizerConfig(path=str(decoder), causal=True, chat_template=str(TEMPLATE))
    out = str(tmp_path / "data/llama_nano_instruct")
    local = {"local": {"workers": 1}}
    assert prepare(CorpusConfig({"questions": source}, tokenizer, [256], out, validation=0.2, executor=local))

    table, results = run([], "--processes", "1", "--seeds", "1", *SMALL)
    assert [(one["start"], one["seed"]) for one in results] == [
        ("untuned", None),
        ("answers only", 1),
        ("prompts too", 1),
    ]
    losses = [one["found"]["long"]["answer_loss"] for one in results]
    assert len(set(losses)) == 3
    assert table[2][1:] == [*(f"{loss:.3f}" for loss in losses), f"{losses[2] - losses[1]:+.3f}"]
    answers, prompts = (
        read_lines(tmp_path / f"out/{name}_1/metrics.jsonl") for name in ("answers_only", "prompts_too")
    )
    seen = [[(line["real_tokens"], line["tokens_by_source"]) for line in of_run] for of_run in (answers, prompts)]
    assert seen[0] == seen[1] and answers[0]["loss"] != prompts[0]["loss"]
    said = json.loads((tmp_path / "out/evaluations/short/prompts_too_1/question_answering/result.json").read_text())
    assert said["data"]["examples"] == 2 and "in the tokenizer's chat template" in said["notes"][0]


def conversation(kind: str, number: int) -> dict:
    context = "the token attends the window of the document " * (5 if kind == "long" else 1)
    turns = [("user", f"{number}: {context}\n\nWhich window?"), ("assistant", f"window {number}")]
    return {"messages": [{"role": role, "content": content} for role, content in turns], "kind": kind}
