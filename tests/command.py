"""The command `rotary-foundry`, called in this process, which has imported what it needs."""

import io
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from unittest import mock

from rotary_foundry import cli


def rotary_foundry(*arguments: object) -> subprocess.CompletedProcess:
    """Run the command with these arguments and return what a process that ran it would have left, as text."""
    return captured(cli.main, "rotary-foundry", *arguments)


def captured(main: Callable[[], None], *command: object) -> subprocess.CompletedProcess:
    """Call a program's main function, which takes its arguments from sys.argv, in this process."""
    status, arguments = 0, list(map(str, command))
    with (
        redirect_stdout(io.StringIO()) as out,
        redirect_stderr(io.StringIO()) as err,
        mock.patch.object(sys, "argv", arguments),
    ):
        try:
            main()
        except SystemExit as ended:
            status = ended.code or 0
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


def output_of(*arguments: object) -> str:
    """Return what the command prints when it ends without an error."""
    done = rotary_foundry(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout
