"""Choose the folders where torch.compile and Triton keep compiled code. Imports no torch.

By default both use one folder for all releases: torch below TMPDIR, and Triton in the home directory, which all nodes
may share. Here each pair of releases has its own folder in the node's TMPDIR. Another release starts with an empty
folder, and an old folder can be recognised by its name. The run's folder is not used, because a process executes this
code, and a run's folder may come from others.
"""

import getpass
import os
import tempfile
from importlib import metadata
from pathlib import Path

PACKAGES, NOT_INSTALLED = ("torch", "triton"), "none"
FOLDERS = {"TORCHINDUCTOR_CACHE_DIR": "", "TRITON_CACHE_DIR": "triton"}


def separate_compiled_code() -> None:
    """Set the folders for this process and its children, before torch is imported; variables that are set are kept.

    torch's version includes that of CUDA, as in 2.15.0+cu132, except in PyPI's build, the only one there per release.
    """
    folder = our_folder()
    for variable, below in FOLDERS.items():
        os.environ.setdefault(variable, str(folder / below))


def our_folder() -> Path:
    """Return this user's folder for the releases that are installed."""
    return _folder(*(f"{package}-{_release(package)}" for package in PACKAGES))


def folders_of_other_releases() -> list[Path]:
    """Return this user's folders that `separate_compiled_code` has chosen with other releases."""
    pattern = _folder(*(f"{package}-*" for package in PACKAGES))
    return sorted(path for path in pattern.parent.glob(pattern.name) if path.is_dir() and path != our_folder())


def names_a_release(folder: str) -> bool:
    """Return whether a path has the release of an installed package in it."""
    releases = {_release(package) for package in PACKAGES} - {NOT_INSTALLED}
    return any(release in folder for release in releases)


def _folder(*releases: str) -> Path:
    return Path(tempfile.gettempdir()) / "_".join(("torchinductor", _user(), *releases))


def _release(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # torch for CPU has no Triton
        return NOT_INSTALLED


def _user() -> str:
    """Return the user's name, as torch does; a container may run under a number that has none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
