"""Make the folder of wheels that gpu_proof.py needs on a machine without network, and print how to use it.

    python benchmarks/gpu_wheels.py FOLDER [PIN …]

Such a machine has Python 3.12 on Linux, and torch, triton and transformers with their dependencies. The packages that
OmegaConf and Composer need in addition are found from those installed here, and pip downloads them in the versions of
constraints.txt. A PIN replaces one there. torchvision has to match the machine's torch: for torch 2.11 give
`torchvision==0.26.*`. Streaming is left out, because its object store clients are too large; so the proof's section
`run` is skipped there.
"""

import argparse
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
PRESENT, NEEDED = ("torch", "triton", "transformers"), ("omegaconf", "mosaicml")
ALSO = ("rich",)  # only some versions of transformers depend on it
MOST_MIB = 64
TARGET = {"python_version": "3.12", "python_full_version": "3.12.0", "sys_platform": "linux"}
GLIBC = (5, 12, 17, 24, 26, 27, 28, 31, 34)  # pip compares platforms literally, and wheels name different ones


def needs(packages: tuple[str, ...]) -> set[str]:
    """Return the canonical names of packages and of all their dependencies on the target.

    Raises:
        PackageNotFoundError: one of them is not installed here; `make test` installs all.
    """
    found, left = set(), [Requirement(package) for package in packages]
    while left:
        package = left.pop()
        for extra in ("", *package.extras):
            key = f"{canonicalize_name(package.name)}[{extra}]"
            if key not in found:
                found.add(key)
                wanted = map(Requirement, requires(package.name) or ())
                left += [each for each in wanted if not each.marker or each.marker.evaluate(TARGET | {"extra": extra})]
    return {key.partition("[")[0] for key in found}


def pinned(names: set[str], pins: list[str]) -> list[str]:
    """Return `name==version` of each package, from constraints.txt unless a pin gives another.

    Raises:
        KeyError: constraints.txt has no pin of a package for the target.
    """
    versions = {}
    for line in [*CONSTRAINTS.read_text(encoding="utf-8").splitlines(), *pins]:
        pin = Requirement(line)
        if not pin.marker or pin.marker.evaluate(TARGET):
            versions[canonicalize_name(pin.name)] = f"{pin.name}{pin.specifier}"
    return sorted(versions[name] for name in names)


def download(packages: list[str], folder: Path) -> None:
    """Download wheels for the target.

    Raises:
        CalledProcessError: pip failed and printed why. If uv made .venv, `python -m ensurepip` installs pip.
    """
    platforms = [f"--platform=manylinux_2_{glibc}_x86_64" for glibc in GLIBC]
    platforms += [f"--platform=manylinux{year}_x86_64" for year in (1, 2010, 2014)]
    target = ["--python-version=3.12", "--only-binary=:all:", *platforms]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download", "--no-deps"]
    subprocess.run([*pip, *target, f"--dest={folder}", *packages], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="new or empty")
    parser.add_argument("pins", nargs="*", metavar="PIN", help="such as torchvision==0.26.*")
    given = parser.parse_args()
    if given.folder.exists() and any(given.folder.iterdir()):
        parser.error(f"{given.folder} is not empty")
    download(pinned(needs(NEEDED) - (needs(PRESENT) - needs(ALSO)), given.pins), given.folder)
    wheels = sorted(given.folder.glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in wheels) / 2**20
    print(f"{len(wheels)} wheels, {size:.1f} MiB")
    if size > MOST_MIB:
        largest = max(wheels, key=lambda wheel: wheel.stat().st_size)
        sys.exit(f"expected at most {MOST_MIB} MiB; the largest is {largest.name}")
    print("On the other machine, in this repository:")
    print(f"  python3 -m pip install --no-index --no-deps --target .proof {re.escape(str(given.folder))}/*.whl")
    print("  PYTHONPATH=src:.proof python3 benchmarks/gpu_proof.py")


if __name__ == "__main__":
    main()
