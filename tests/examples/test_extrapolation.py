"""examples/extrapolation.py runs both suites with each kind of positions, and its table has their figures."""

import runpy
import sys
from pathlib import Path

from rotary_foundry.evaluation.compare import find_results
from tests.evaluation.decoders import save_decoder

SCRIPT = Path(__file__).parents[2] / "examples/extrapolation.py"
SMALL = [
    "longest=128",
    "shortest=32",
    "target_tokens=8",
    "windows=1",
    "lengths=[256, 384]",
    "depths=[50]",
    "resamples=20",
]


def test_the_table_has_a_line_of_losses_and_pass_keys_for_each_kind_of_positions(tmp_path, monkeypatch, capsys):
    model, text = save_decoder(tmp_path / "llama"), tmp_path / "story.txt"
    text.write_text("Snow lay on the hill. The lamp, an old one, was out! " * 40, encoding="utf-8")
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(model), str(text), *SMALL, f"out={out}"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert lines[0] == [
        *("positions", "loss, 32 given", "loss, 64 given", "loss, 128 given"),
        *("pass key in 256", "pass key in 384"),
    ]
    assert [line[0] for line in lines[2:]] == ["none", "linear", "ntk", "yarn", "ABF"]
    losses = [result for result in find_results([out]) if result.suite == "causal_context"]
    folders = {"none": "llama", "linear": "llama-linear-2", "yarn": "llama-yarn-2", "ABF": "llama-theta-500000"}
    for name, folder in folders.items():
        (result,) = [result for result in losses if result.model["name"] == folder]
        (line,) = [line for line in lines if line[0] == name]
        assert line[1:4] == [f"{row.measures['loss given them'].value:.3f}" for row in result.rows[-3:]]
    assert len({line[3] for line in lines[2:]}) > 1  # positions change the loss
