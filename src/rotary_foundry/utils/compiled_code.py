"""Where torch.compile and Triton keep the code that they made. Imports no torch.

Both would share one folder among all releases, torch's below TMPDIR and Triton's below the home directory. Code that
another release left there has failed to load or to run. A home directory is also often on a disk that all nodes share.
Here each pair of releases has a folder below the node's TMPDIR. The run's folder was left out: this is code that a
process loads, and a run's folder is also passed on to others.
"""

import getpass
import os
import tempfile
from importlib import metadata
from pathlib import Path

FOLDERS = {"TORCHINDUCTOR_CACHE_DIR": "", "TRITON_CACHE_DIR": "triton"}


def separate_compiled_code() -> None:
    """Set the folders for this process and those that it starts, before torch is imported; what is set stays.

    The release of torch names that of CUDA, as in 2.15.0+cu132, unless it is the only one of that release on PyPI.
    """
    releases = "_".join(f"{package}-{_release(package)}" for package in ("torch", "triton"))
    folder = Path(tempfile.gettempdir()) / f"torchinductor_{_user()}_{releases}"
    for variable, below in FOLDERS.items():
        os.environ.setdefault(variable, str(folder / below))


def _release(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # torch for CPU has no Triton
        return "none"


def _user() -> str:
    """Return the user's name, as torch does; a container may run under a number that has none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
