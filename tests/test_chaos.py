"""For an hour, everything fails at random (chaos.py): SEED chooses how, MINUTES how long; `-rP` shows the counts."""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .namespaces import why_not

REPOSITORY = Path(__file__).parents[1]
SEED = int(os.environ.get("SEED", time.time()))
MINUTES = float(os.environ.get("MINUTES", 60))
UNSHARE = ["--map-root-user", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
# Not `python -m`: every process that is started would import its module again.
MAIN = """
import sys
from pathlib import Path
from tests.chaos import main
main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
"""


@pytest.mark.long
@pytest.mark.timeout(60 * MINUTES + 3600)
def test_whatever_fails_the_same_command_comes_to_the_same_end(tmp_path):
    """In namespaces: what it cuts off, fills and kills is its own."""
    print(f"SEED={SEED} MINUTES={MINUTES:g}", flush=True)
    (tmp_path / "disk").mkdir()
    steps = f"ip link set lo up && mount -t tmpfs -o size=64m none {tmp_path}/disk && mount -t tmpfs none /dev/shm"
    if reason := why_not(UNSHARE, steps):
        pytest.skip(reason)
    main = shlex.join([sys.executable, "-c", MAIN, str(tmp_path), str(SEED), str(MINUTES)])
    chaos = subprocess.run(["unshare", *UNSHARE, "sh", "-c", f"{steps} && {main}; exit $?"], cwd=REPOSITORY)
    assert chaos.returncode == 0
