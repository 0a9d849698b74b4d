"""Composer's launcher and its ranks, forked from a process that has imported what they need.

`composer -n 2 launch …` imports torch and Composer three times, in the launcher and in each rank, which takes most of a
tiny run's time. Here the launcher is the real one, and only the way it starts a Python script is replaced: by a fork of
itself that runs the script, with the same arguments, environment, output files and process id. The launcher in turn is
a fork of a server that has imported everything and done nothing else, so each run begins in the same state.
"""

import atexit
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing import get_context, resource_tracker, set_start_method
from multiprocessing.process import BaseProcess
from pathlib import Path

PRELOADED = (
    "composer.cli.launcher",
    "rotary_foundry.data_prep.stages",
    "rotary_foundry.interop.export",
    "rotary_foundry.reporting.start",
    "rotary_foundry.training.extensions",
    "rotary_foundry.training.run",
    "torch.distributed.checkpoint",
)


class ForkedScript:
    """As `subprocess.Popen([sys.executable, SCRIPT, *arguments])`, for what Composer's launcher does with one."""

    def __init__(self, args: list[str], stdout=None, stderr=None, text: bool = True):
        self.args, self.stdout, self.stderr, self.returncode = args, stdout, stderr, None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            for file, descriptor in ((stdout, 1), (stderr, 2)):
                if file is not None:
                    os.dup2(file.fileno(), descriptor)
            _exit_after(_run_script, args[1:])

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def composer(arguments: list[str], folder: Path, environment: dict[str, str], timeout: float):
    """Run `composer` with these arguments and return the finished process, its output as text.

    Args:
        folder: the working directory.
        environment: all of it.
        timeout: seconds; then the launcher is killed.
    """
    return _forked(["composer", *arguments], folder, environment, timeout)


def script(arguments: list[str], folder: Path, environment: dict[str, str], timeout: float):
    """Run `python` with a script and its arguments; otherwise as `composer`."""
    return _forked(["python", *arguments], folder, environment, timeout)


def start(command: list[str], folder: Path, environment: dict[str, str], output: Path) -> BaseProcess:
    """Start a command and return its process, which is not waited for.

    Args:
        command: `composer` or `python`, and its arguments.
        folder: the working directory.
        environment: all of it.
        output: a folder, in which its output goes to the files `stdout` and `stderr`.
    """
    run, arguments = (_run_composer, command) if command[0] == "composer" else (_run_script, command[1:])
    context = get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    outputs = [output / stream for stream in ("stdout", "stderr")]
    process = context.Process(target=_in_fork, args=(run, arguments, folder, environment, outputs))
    process.start()
    return process


def _forked(arguments: list[str], folder: Path, environment: dict[str, str], timeout: float):
    with tempfile.TemporaryDirectory() as of_this_run:
        process = start(arguments, folder, environment, Path(of_this_run))
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
        texts = [
            Path(of_this_run, stream).read_text(encoding="utf-8", errors="replace") for stream in ("stdout", "stderr")
        ]
    return subprocess.CompletedProcess(arguments, process.exitcode, *texts)


def _in_fork(
    run: Callable, arguments: list[str], folder: Path, environment: dict[str, str], output: list[Path]
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # that of TMPDIR, which was looked up before
    os.chdir(folder)
    for path, descriptor in zip(output, (1, 2), strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), descriptor)
    _exit_after(run, arguments)


def _run_composer(arguments: list[str]) -> None:
    from composer.cli import launcher  # before, as a server that another test has started may not have imported torch

    subprocess.Popen = ForkedScript
    sys.argv = arguments
    sys.exit(launcher.main())


def _run_script(arguments: list[str]) -> None:
    """Run a script as `python SCRIPT arguments` does."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # which torch reads when it is imported
    set_start_method(None, force=True)  # Python's default, not that by which this process came about
    # A tracker of its own removes a process's shared memory when the process has ended.
    resource_tracker._resource_tracker._fd = resource_tracker._resource_tracker._pid = None
    subprocess.Popen = POPEN
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")


def _exit_after(function, *arguments) -> None:
    """End this process as Python ends after a script, without returning into what it was forked from."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)
    status = 0
    try:
        function(*arguments)
    except SystemExit as exit:
        status = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


POPEN = subprocess.Popen
