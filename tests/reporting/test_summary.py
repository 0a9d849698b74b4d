"""`summary` prints what a run's folder has, and says what it cannot show."""

import json
import shutil
from pathlib import Path

import pytest

from rotary_foundry.runs.run_folder import RunFolder
from tests.command import output_of
from tests.finished_run import write_finished_run

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> RunFolder:
    """To be read only."""
    return write_finished_run(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def run(finished, tmp_path) -> RunFolder:
    """A copy of it, in a folder of its own."""
    shutil.copytree(finished.path.parent / "data", tmp_path / "data")
    run = RunFolder(shutil.copytree(finished.path, tmp_path / "run"))
    run.environment.write_text(json.dumps({"working_directory": str(tmp_path)}))
    return run


def summary_of(run: RunFolder) -> str:
    return " ".join(output_of("summary", run.path).split())


def test_special_tokens_spelled_in_a_text_stay_text(run, monkeypatch):
    """A second mask in a text about tokenizers was one more place to fill."""
    text = "the [MASK] token of an encoder and [SEP] and [PAD] and [MASK] window"
    held_out = [type("Text", (), {"text": text})] * 3
    monkeypatch.setattr("rotary_foundry.reporting.summary.held_out", lambda *_: held_out)
    printed = summary_of(run)
    assert printed.count("in the text: ") == 3
    assert printed.count("%;") == 3


def cut_off(path: Path) -> None:
    path.write_text("{")


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("model.safetensors", Path.unlink, "neither model.safetensors nor model.safetensors.index.json found"),
        ("model.safetensors", cut_off, "model.safetensors: cannot be read"),
        ("tokenizer.json", Path.unlink, "tokenizer.json is missing"),
        ("tokenizer.json", cut_off, "tokenizer.json: cannot be read as a tokenizer"),
        ("tokenizer_config.json", cut_off, "cannot open this tokenizer"),
        ("config.json", cut_off, "config.json: cannot be read"),
    ],
)
def test_of_a_damaged_export_the_summary_says_why_no_masks_are_filled(run, name, damage, said):
    damage(run.export / name)
    printed = summary_of(run)
    assert "decay" in printed
    assert "No masks are filled: " in printed
    assert said in printed
