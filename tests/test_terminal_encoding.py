"""What a terminal or log that is not UTF-8 gets (Textualize/rich#826)."""

import os
import re
import subprocess
import sys

import pytest

from tests.command import output_of

PLAN = ("-c", "from rotary_foundry.cli import main; main()", "plan")
ENVIRONMENTS = {
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "ascii": {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
}


def plan_in(environment: str, recipe: str | bytes) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *PLAN, recipe], env=os.environ | ENVIRONMENTS[environment], capture_output=True
    )


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_a_table_is_printed_in_the_encoding_of_the_terminal_with_escapes_for_what_it_lacks(environment):
    done = plan_in(environment, "yamls/main/nano.yaml")
    assert (done.returncode, done.stderr) == (0, b"")
    printed = done.stdout.decode(environment)
    figures = re.findall(r"[\d,.]+", output_of("plan", "yamls/main/nano.yaml"))
    assert len(figures) > 20
    assert re.findall(r"[\d,.]+", re.sub(r"\\u[0-9a-f]{4}|\\x[0-9a-f]{2}", "", printed)) == figures


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_an_error_names_a_file_whose_name_is_not_of_the_encoding(environment):
    done = plan_in(environment, "漢\udcff.yaml".encode("utf-8", "surrogateescape"))
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: ") and done.stderr.endswith(b"\\udcff.yaml: no such file\n")
