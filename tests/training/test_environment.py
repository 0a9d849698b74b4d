"""What a run writes down of what it ran on, and the page of a real run."""

import json
import os
import subprocess
from importlib.metadata import version
from pathlib import Path

from rotary_foundry.reporting.charts import make_charts
from rotary_foundry.reporting.records import Run
from rotary_foundry.runs.environment import commit
from rotary_foundry.runs.run_folder import RunFolder
from tests.training.runs import column


def git(folder: Path, *arguments: str) -> str:
    identity = {f"GIT_{who}_{what}": "a@b.example" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(
        ["git", "-C", folder, *arguments], env=os.environ | identity, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_run_tells_what_it_ran_on(undisturbed):
    found = json.loads(RunFolder(undisturbed).environment.read_text())
    assert (found["ranks"], found["nodes"]) == (2, 1)
    assert found["packages"]["torch"] == version("torch")
    assert found["commit"] == commit()


def test_the_charts_of_a_real_run_have_its_updates(undisturbed):
    charts = {chart.key: chart for chart in make_charts([Run(undisturbed)])}
    kept = next(series for series in charts["loss"].series if not series.abandoned)
    assert kept.token.tolist() == column(undisturbed, "token")
    assert {"lr", "rows", "row_length", "rope_theta", "tokens_per_second", "mixture-0"} <= charts.keys()
    assert any(series.abandoned for series in charts["loss"].series)  # the recipe sets a rollback


def test_the_commit_says_whether_files_differ_from_it(tmp_path):
    assert commit(tmp_path) is None
    git(tmp_path, "init")
    (tmp_path / "__init__.py").write_text("")
    assert commit(tmp_path) is None  # not git's
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "a commit")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert commit(tmp_path) == head
    (tmp_path / "__init__.py").write_text("changed = True\n")
    assert commit(tmp_path) == f"{head} + changes"
