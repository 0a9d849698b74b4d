"""The dashboard is made without a network, shows what a run logs, and its folder hides no library."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rotary_foundry.loggers.metric_keys import METRICS

LAUNCH = Path(__file__).parents[2] / "launch"
ASKED_FOR = {
    "loss by stage": "loss/stage/pretrain",
    "learning rate": "recipe/lr",
    "batch size": "recipe/rows",
    "row length": "recipe/row_length",
    "theta of the global layers": "recipe/rope_theta",
    "tokens per second": "throughput/tokens_per_sec",
    "MFU": "throughput/device/mfu",
    "drawn": "data/drawn/wiki",
    "asked": "data/asked/wiki",
    "rollbacks so far": "rollback/count",
    "held-out loss": "eval/decay/loss",
}


@pytest.fixture(scope="module")
def plots():
    """The panels as W&B gets them."""
    spec = importlib.util.spec_from_file_location("dashboard", LAUNCH / "wandb/dashboard.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["dashboard"] = module
    spec.loader.exec_module(module)
    view = json.loads(module.dashboard("team", "project")._to_model().model_dump_json())
    assert (view["entity"], view["project"]) == ("team", "project")
    sections = view["spec"]["section"]["panel_bank_config"]["sections"]
    return [panel["config"] for section in sections for panel in section["panels"]]


def shows(plot: dict, key: str) -> bool:
    return key in plot["metrics"] or bool(plot["metric_regex"] and re.fullmatch(plot["metric_regex"], key))


def test_no_panel_stays_empty_as_each_key_it_shows_is_one_that_a_run_logs(plots):
    named = {re.sub("<.*?>", "name", metric.name) for metric in METRICS}  # which a whole run is held to
    for plot in plots:
        assert set(plot["metrics"]) <= named, plot["chart_title"]
        assert plot["metrics"] or any(shows(plot, key) for key in named), plot["chart_title"]
        assert plot["x_axis"] in ("_step", "time/token")


@pytest.mark.parametrize(("title", "key"), ASKED_FOR.items())
def test_there_is_a_panel_for_what_one_wants_to_see_of_a_run(plots, title, key):
    (plot,) = [plot for plot in plots if plot["chart_title"] == title]
    assert shows(plot, key)


def test_the_folder_hides_no_library_from_composer_launch():
    script = "import sys; sys.path.insert(0, sys.argv[1]); import wandb; print(wandb.__version__)"
    run = subprocess.run([sys.executable, "-c", script, str(LAUNCH)], capture_output=True, text=True)
    assert run.stdout.startswith("0.28."), run.stderr


def upload(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    without_key = {name: value for name, value in os.environ.items() if name != "WANDB_API_KEY"}
    command = [sys.executable, str(LAUNCH / "wandb"), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=without_key | environment
    )


def test_a_wrong_call_says_how_it_is_called():
    run = upload("team")
    assert (run.returncode, run.stderr) == (2, "usage: python launch/wandb ENTITY/PROJECT\n")


def test_without_a_key_it_says_so(tmp_path):
    run = upload("team/project", HOME=str(tmp_path), NETRC=str(tmp_path / "netrc"))
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1] == "error: No API key configured. Use `wandb login` to log in."
