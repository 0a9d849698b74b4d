"""The command `rotary-foundry`, called in this process, which has imported what it needs."""

import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from unittest import mock

from rotary_foundry import cli


def rotary_foundry(*arguments: object) -> subprocess.CompletedProcess:
    """Run the command with these arguments and return what a process that ran it would have left, as text."""
    command, status = ["rotary-foundry", *map(str, arguments)], 0
    with (
        redirect_stdout(io.StringIO()) as out,
        redirect_stderr(io.StringIO()) as err,
        mock.patch.object(sys, "argv", command),
    ):
        try:
            cli.main()
        except SystemExit as ended:
            status = ended.code or 0
    return subprocess.CompletedProcess(command, status, out.getvalue(), err.getvalue())


def output_of(*arguments: object) -> str:
    """Return what the command prints when it ends without an error."""
    done = rotary_foundry(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout
