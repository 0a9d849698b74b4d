"""The SkyPilot task: by SkyPilot's own parser, and its command by the shell. No cloud has run it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rotary_foundry.runs.recipes import load_recipe
from rotary_foundry.utils.errors import STOPPED

REPOSITORY = Path(__file__).parents[2]
TASK = REPOSITORY / "launch/skypilot/base.yaml"
SKYPILOT = "skypilot==0.14.1"  # it does not resolve beside our pins, so it gets an environment of its own
PARSE = """
import json, sys, yaml, sky
config = yaml.safe_load(open(sys.argv[1]))
secrets = [(name, "planted") for name in config["secrets"]]
task = sky.Task.from_yaml_config(config, env_overrides=[("BUCKET", "mine")], secrets_overrides=secrets)
(resources,) = task.resources
print(json.dumps(dict(
    nodes=task.num_nodes, spot=resources.use_spot, gpus=resources.accelerators, recovery=resources.job_recovery,
    secrets=sorted(task.secrets), envs=sorted(task.envs), run=task.run,
)))
"""


@pytest.fixture(scope="module")
def task() -> dict:
    return yaml.safe_load(TASK.read_text())


def test_each_node_starts_its_ranks_of_one_run_and_the_command_is_the_same_every_time(task, tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')  # it only says what it was given
    python.chmod(0o755)
    given = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "SKYPILOT_NUM_GPUS_PER_NODE": "8",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": "1",
        "SKYPILOT_NODE_IPS": "10.0.0.4\n10.0.0.5",
        "BUCKET": "mine",
        "RECIPE": task["envs"]["RECIPE"],
    }
    said = subprocess.run(["bash", "-c", task["run"]], env=given, capture_output=True, text=True, check=True).stdout
    script, *arguments = said.splitlines()
    assert (REPOSITORY / script).is_file()
    launch = arguments.index("launch")
    options = dict(zip(arguments[:launch:2], arguments[1:launch:2], strict=True))
    assert options["--nproc"] == "8"
    assert options["--world_size"] == "16"
    assert options["--node_rank"] == "1"
    assert options["--master_addr"] == "10.0.0.4"
    recipe = load_recipe(REPOSITORY / arguments[launch + 1], arguments[launch + 2 :])
    assert recipe.save_folder == "s3://mine/runs"
    assert recipe.data.remote == "s3://mine/data"


def test_no_secret_has_a_value_in_the_file_and_none_is_named_elsewhere(task):
    assert set(task["secrets"].values()) == {None}
    assert not [name for name in task["envs"] if re.search(r"KEY|TOKEN|SECRET", name)]
    assert not [name for name in task["secrets"] if name in task["run"] + task["setup"]]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_skypilots_own_parser_takes_it_as_a_spot_job_that_recovers(task, tmp_path):
    environment = tmp_path / "venv"
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, str(environment)], check=True)
    python = str(environment / "bin/python")
    subprocess.run([*uv, "pip", "install", "--quiet", "--python", python, SKYPILOT], check=True, timeout=600)
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HOME": str(tmp_path)}
    parsed = subprocess.run([python, "-c", PARSE, str(TASK)], env=own, capture_output=True, text=True, timeout=200)
    assert parsed.returncode == 0, parsed.stderr
    told = json.loads(parsed.stdout.splitlines()[-1])
    assert told["spot"]
    assert told["nodes"] == task["num_nodes"]
    assert told["gpus"] == {"H100": 8}
    assert told["recovery"]["recover_on_exit_codes"] == [STOPPED]
    assert told["secrets"] == sorted(task["secrets"])
    assert told["run"] == task["run"]
