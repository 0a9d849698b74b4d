"""Find compiled code that other releases of torch and Triton have left, or may leave where this one reads.

Our code keeps compiled code in a folder for each pair of releases (utils/compiled_code.py), so an upgrade leaves the
old folder behind. Nothing is removed here: another environment on this machine may still use its folder.

A folder from the environment is used as it is. If its path names no installed release, it stays the same over upgrades,
and nothing shows which release has made what in it. So it is doubtful.
"""

import os
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from rotary_foundry.doctor.finding import Finding, doubtful, good
from rotary_foundry.utils.compiled_code import FOLDERS, folders_of_other_releases, names_a_release, our_folder
from rotary_foundry.utils.wording import size

SUBJECT = "compiled code"


def check_compiled_code() -> Iterator[Finding]:
    """Name the folders of other releases with their size, and folders from the environment that serve all releases."""
    others = folders_of_other_releases()
    set_here = {variable: os.environ[variable] for variable in FOLDERS if os.environ.get(variable)}
    shared = [f"{variable}={folder}" for variable, folder in set_here.items() if not names_a_release(folder)]
    if others:
        yield doubtful(
            SUBJECT,
            f"{size(sum(map(_bytes, others)))} by other releases of torch or Triton: {', '.join(map(str, others))}",
            f"if no other environment uses them: rm -r {shlex.join(map(str, others))}",
        )
    if shared:
        yield doubtful(
            SUBJECT,
            f"{' and '.join(shared)}: the same folder for all releases of torch and Triton",
            f"unset it, to have a folder for these releases in TMPDIR, or append /{our_folder().name}",
        )
    if not others and not shared:
        yield good(SUBJECT, "none of other releases")


def _bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # a run replaces its files
            total += path.lstat().st_size if path.is_file() else 0
    return total
