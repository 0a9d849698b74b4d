"""What tests of every folder may ask for, and a record of how a test command ended."""

import json
import os
import platform
import subprocess
import time
from functools import partial
from importlib.metadata import version
from itertools import count
from pathlib import Path

import hypothesis
import pytest

# Small models gain nothing from a second thread, and two files at a time on two cores lose half of their time by it.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by torch when it is imported

hypothesis.settings.register_profile("any_machine", deadline=None)
hypothesis.settings.load_profile("any_machine")

TESTS = Path(__file__).parent
LIBRARIES = ("torch", "transformers", "mosaicml", "mosaicml-streaming")


def pytest_addoption(parser):
    parser.addoption("--result", type=Path, help="a JSON file to write the outcome to, for .ci/status.py")


def pytest_configure(config):
    config.began = time.time()


def pytest_collection_modifyitems(items):
    """What takes an hour first, then whole runs: of several processes that test, none is left alone with them."""
    whole_runs = ("training", "launch")
    items.sort(
        key=lambda item: (item.path.name != "test_chaos.py", item.path.relative_to(TESTS).parts[0] not in whole_runs)
    )


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    if (path := config.getoption("--result")) is None:
        return
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    outcomes = ("passed", "failed", "error", "skipped")
    reasons = {report.longrepr[2] for report in terminalreporter.getreports("skipped")}
    result = {
        "date": time.strftime("%Y-%m-%d", time.localtime(config.began)),
        "commit": commit.stdout.strip(),
        "arguments": list(config.invocation_params.args),
        "status": int(exitstatus),
        "seconds": round(time.time() - config.began),
        **{outcome: len(terminalreporter.getreports(outcome)) for outcome in outcomes},
        "skipped_because": sorted(reason.removeprefix("Skipped: ") for reason in reasons),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{library: version(library) for library in LIBRARIES},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


@pytest.fixture
def numbers_of_our_own(monkeypatch):
    """Streaming numbers its shared memory from 0 to the first that is free, which two processes at a time both find."""
    from streaming.base.shared import prefix

    monkeypatch.setattr(prefix, "_each_prefix_int", partial(count, 1000 * os.getpid()))
