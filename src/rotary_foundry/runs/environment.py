"""Record a run's environment: its working directory, packages, devices, commit; no environment variables or addresses.

Relative paths of the run's recipe are relative to the working directory (`RunFolder.located`).
"""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch
from composer.utils import dist

import rotary_foundry
from rotary_foundry.runs.run_folder import WORKING_DIRECTORY

PACKAGES = (
    "rotary-foundry",
    "mosaicml",
    "mosaicml-streaming",
    "torch",
    "triton",
    "flash-attn",
    "flash-attn-3",
    "transformers",
    "tokenizers",
    "numpy",
)


def environment() -> dict:
    """Return the environment as plain JSON types; the devices are those of this process's node."""
    found = {
        WORKING_DIRECTORY: os.getcwd(),
        "commit": commit(),
        "ranks": dist.get_world_size(),
        "nodes": -(-dist.get_world_size() // dist.get_local_world_size()),
        "devices": _devices(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
    }
    if torch.cuda.is_available():
        nccl = ".".join(map(str, torch.cuda.nccl.version()))
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "nccl": nccl}
    return found


def commit(folder: Path = Path(rotary_foundry.__file__).parent) -> str | None:
    """Return the git commit of this code, with "+ changes" if files differ from it; None if it is unknown.

    A package that is installed inside a repository, in its `.venv`, does not belong to that repository. If git does not
    track the code, as in an image without `.git`, the commit is the value of ROTARY_FOUNDRY_COMMIT.
    """
    try:
        _git(folder, "ls-files", "--error-unmatch", "__init__.py")
        head, changes = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("ROTARY_FOUNDRY_COMMIT") or None
    return head + (" + changes" if changes else "")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> list[str]:
    """Return the GPUs; without any, the processor and the number of its cores for all ranks."""
    if torch.cuda.is_available():
        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    cores = len(os.sched_getaffinity(0))
    return [f"{_processor()}, {cores} core{'s' if cores > 1 else ''}"]


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()
