"""`rotary-foundry --version`."""

from importlib.metadata import version

from typer.testing import CliRunner

from rotary_foundry.cli import app
from rotary_foundry.runs.environment import commit


def test_the_version_names_release_and_commit():
    done = CliRunner().invoke(app, ["--version"])
    assert done.stdout == f"rotary-foundry {version('rotary-foundry')}, commit {commit()}\n"
    assert done.exit_code == 0
