"""`make` alone lists what there is to make."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_make_alone_lists_every_target_with_a_line():
    listed = subprocess.run(
        ["make", "--directory", ROOT], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[1].split()
    assert set(re.findall(r"^make ([a-z-]+) +\S", listed, re.MULTILINE)) == set(targets)
