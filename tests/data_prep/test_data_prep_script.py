"""`python data_prep CONFIG [key=value …]` as it is typed."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[2]


@pytest.fixture
def yaml(config, tmp_path):
    path = tmp_path / "data.yaml"
    OmegaConf.save(OmegaConf.structured(config), path)
    return path


def test_shards_are_made_and_reported(yaml, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["data_prep", str(yaml), f"out={tmp_path / 'elsewhere'}", "row_lengths=[128]"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "data_prep"), run_name="__main__")
    assert end.value.code == 0
    assert (tmp_path / "elsewhere" / "mine" / "128" / "train" / "index.json").exists()
    printed = capsys.readouterr().out
    assert "rows of 128" in printed
    assert "yours" in printed


def test_a_wrong_key_is_one_line_and_status_2_before_torch_is_imported(yaml, tmp_path):
    # A torch that cannot be imported: if anything tried, the error would be another.
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    result = subprocess.run(
        [sys.executable, "data_prep", str(yaml), "row_length=[64]"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        "error: argument 'row_length=[64]': unknown key 'row_length'; did you mean 'row_lengths'?"
    ]
    assert not (tmp_path / "out").exists()
