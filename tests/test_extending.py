"""The examples of docs/extending.md, taken from the page: they prepare a corpus and train on it.

The page's files and lines go into a copy of the package. Nothing else of it changes.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
PLACES = {"OBJECTIVES": "objectives/objective.py", "READERS": "data_prep/readers/__init__.py"}
SUBTITLE = "1\n00:00:01,000 --> 00:00:02,500\n{}\n\n2\n00:00:03,000 --> 00:00:04,000\n{}\n"
DATA = "sources: {films: {reader: subtitles, path: films}}\nvalidation: 0.2\nrow_lengths: [64]\nout: data\n"
DATA += "tokenizer: {train: {vocab_size: 448}}\n"
RECIPE = """
extends: [ROOT/yamls/modernbert.yaml, ROOT/yamls/models/nano.yaml]
run_name: spans
precision: fp32
objective: {name: span_masked_lm, mean_span: 4, mlm_probability: 0.3, eval_mlm_probability: 0.15, mask_share: 0.8,
  random_share: 0.1}
model: {vocab_size: 448, hidden_size: 32, intermediate_size: 32, num_attention_heads: 2}
data: {local: data, sources: [films], num_workers: 0}
save_interval: 10ba
stages:
  only: {duration: 512tok, row_length: 64, rope_theta: 10_000, global_train_batch_size: 4,
    device_train_microbatch_size: 2, lr: 1e-3}
loggers: {lines.Lines: {}}
"""
LOGGER = """
import json
from composer.loggers import LoggerDestination

class Lines(LoggerDestination):
    def log_metrics(self, metrics, step=None):
        with open("logged.jsonl", "a") as file:
            file.write(json.dumps({name: value for name, value in metrics.items() if name.startswith("watch")}) + "\\n")
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The folder where the page was followed, with a corpus of subtitles."""
    folder = tmp_path_factory.mktemp("extending")
    package = folder / "src/rotary_foundry"
    shutil.copytree(ROOT / "src/rotary_foundry", package, ignore=shutil.ignore_patterns("__pycache__"), symlinks=True)
    for path, text in re.findall(r"```python\n# (\S+\.py)\n(.*?)```", PAGE, re.DOTALL):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    added = re.findall(r"```diff\n ((\w+) = \{)\n\+(.*?\n)```", PAGE)
    assert [name for _, name, _ in added] == list(PLACES)
    for line, name, new in added:
        table = package / PLACES[name]
        before, after = table.read_text(encoding="utf-8").split(f"\n{line}\n")
        table.write_text(f"{before}\n{line}\n{new}{after}", encoding="utf-8")
    (folder / "films").mkdir()
    for number in range(100):
        lines = [" ".join(f"word{number * at % 101}" for at in range(first, first + 9)) for first in (1, 10)]
        (folder / f"films/{number:02}.srt").write_text(SUBTITLE.format(*lines))
    (folder / "films/99.srt").write_text("no times in here")
    (folder / "data.yaml").write_text(DATA)
    (folder / "lines.py").write_text(LOGGER)
    (callback,) = re.findall(r"```yaml\n(callbacks:.*?)```", PAGE, re.DOTALL)
    (folder / "spans.yaml").write_text(RECIPE.replace("ROOT", str(ROOT)) + callback)
    return folder


def run(folder: Path, *command: object) -> str:
    places = os.pathsep.join([str(folder), str(folder / "src")])
    ended = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": places, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def test_the_reader_the_objective_and_the_callback_of_the_page_prepare_and_train(built):
    run(built, ROOT / "data_prep", "data.yaml")
    assert "films/99.srt: no subtitle" in next(built.glob("data/**/bad_input.txt")).read_text()
    shown = run(built, Path(sys.executable).with_name("rotary-foundry"), "data", "show", "data/films/64/train", 0)
    assert "word" in shown and "-->" not in shown
    run(built, Path(sys.executable).with_name("composer"), "-n", 1, ROOT / "launch", "spans.yaml")
    lines = [json.loads(line) for line in (built / "runs/spans/metrics.jsonl").read_text().splitlines()]
    assert [line["batch"] for line in lines] == [1, 2] and all(line["loss"] > 0 for line in lines)
    logged = [json.loads(line) for line in (built / "logged.jsonl").read_text().splitlines()]
    assert len([line for line in logged if line.get("watch/embedding_std", 0) > 0]) == len(lines)


def test_the_spans_of_the_page_are_as_long_as_asked_and_end_with_their_document(built):
    code = """
import numpy as np
from types import SimpleNamespace
from rotary_foundry.objectives.span_masked_lm import SpanMaskedLM
spans = SpanMaskedLM(mlm_probability=0.3, eval_mlm_probability=0.15, mask_share=1.0, random_share=0.0, mean_span=4)
tokenizer = SimpleNamespace(special_ids={"mask_token": 4}, vocab_size=100)
rows = 400
row = {"tokens": np.arange(100) % 50 + 10, "lengths": np.array([60, 40])}
chosen = np.stack([spans.prepare(row, tokenizer, np.random.default_rng(i), {"mlm_probability": 0.3})[1] >= 0
                   for i in range(rows)])
print(chosen.mean(), (chosen[:, 1:] & chosen[:, :-1])[:, [*range(59), *range(60, 99)]].mean(),
      (chosen[:, 59] & chosen[:, 60]).mean(), [*spans.problems()])
spans.mean_span = 0.5
print([*spans.problems()][0])
"""
    share, both, across, *_ = run(built, "-c", code).split(maxsplit=3)
    # a token's right neighbour is of its span with probability 3/4, and otherwise chosen independently
    assert abs(float(share) - 0.3) < 0.02
    assert abs(float(both) - 0.3 * (0.75 + 0.25 * 0.3)) < 0.02
    assert abs(float(across) - 0.09) < 0.05
    assert "('mean_span', 'expected at least 1 token, got 0.5')" in run(built, "-c", code)
