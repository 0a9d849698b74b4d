"""Check Python, the packages and the GPUs of one machine.

The pins are in constraints.txt, in the checkout that an editable installation runs from (`make` and the Dockerfile
install that way). A package installed from a wheel has no such file, and the finding says so. A version that differs
from its pin is doubtful, because only the pinned version was tested. A version outside pyproject.toml's ranges is bad.
torch and its dependencies are compared with the tested range (pyproject.toml's) and not with their pins, because a
cluster may need another CUDA. Outside that range they are doubtful.
"""

import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import rotary_foundry
from rotary_foundry.doctor.finding import Finding, bad, doubtful, good
from rotary_foundry.recipe import Recipe
from rotary_foundry.utils.installing import install_command
from rotary_foundry.utils.processor import has_bf16_instructions
from rotary_foundry.utils.wording import one_line

if TYPE_CHECKING:
    import torch

CONSTRAINTS = Path(rotary_foundry.__file__).parents[2] / "constraints.txt"
TORCHS_OWN = re.compile(r"torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z-]+")  # as in the Makefile
NAMED = 4  # the most packages that a line names
ROUNDING = 2**-5  # bf16 has 8 bits, and attention's outputs of normal values are below 4
SMI_SECONDS = 60.0  # time limit of nvidia-smi, which is slow with many GPUs if the driver has to be loaded first
AMPERE = 8  # the first compute capability with bf16 and FlashAttention 2


def check_packages(distribution: str = "rotary-foundry", constraints: Path = CONSTRAINTS) -> Iterator[Finding]:
    """Check that Python and the installed packages have the required versions."""
    try:
        required = [Requirement(line) for line in requires(distribution) or ()]
    except PackageNotFoundError:
        yield bad("packages", f"{distribution} is not installed", install_command())
        return
    pythons = SpecifierSet(metadata(distribution).get("Requires-Python", ""))
    if not pythons.contains(platform.python_version()):
        yield bad(
            "packages", f"Python {platform.python_version()} ({pythons} is needed)", "use such a version of Python"
        )
        return
    required = [requirement for requirement in required if not requirement.marker or requirement.marker.evaluate()]
    wrong = [
        f"{requirement.name} {found or 'is missing'} ({requirement.specifier or 'any'} is needed)"
        for requirement in required
        if (found := _installed(requirement.name)) is None
        or not (requirement.name == "torch" or _within(found, requirement.specifier))
    ]
    if wrong:
        yield bad("packages", _some(wrong), install_command())
    else:
        yield good("packages", f"Python {platform.python_version()}, torch {_installed('torch')}")
    for tested in (requirement.specifier for requirement in required if requirement.name == "torch"):
        if (found := _installed("torch")) is not None and not _within(found, tested):
            yield doubtful("torch", f"torch {found} was not tested ({tested} was)", install_command())
    if not constraints.is_file():
        yield doubtful(
            "pins",
            f"{constraints.name} was not found, so versions were not compared with the tested ones",
            f"install from a checkout: {install_command()}",
        )
        return
    pins = _pins(constraints)
    other = [
        f"{name} {found} instead of {pinned}"
        for name, pinned in pins.items()
        if (found := _installed(name)) is not None and found != pinned
    ]
    if other:
        yield doubtful("pins", _some(other), f"in {constraints.parent}: {install_command()}")
    else:
        yield good("pins", f"as in {constraints}")


def _within(found: str, asked: SpecifierSet) -> bool:
    return asked.contains(Version(found).public, prereleases=True)


def _pins(constraints: Path) -> dict[str, str]:
    """Return the pinned version by package, for this Python and this machine."""
    pins = {}
    for line in constraints.read_text(encoding="utf-8").splitlines():
        requirement = Requirement(line) if line and not line.startswith("#") else None
        if requirement is None or (requirement.marker and not requirement.marker.evaluate()):
            continue
        if not TORCHS_OWN.fullmatch(requirement.name):
            pins[requirement.name] = next(iter(requirement.specifier)).version
    return pins


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _some(names: list[str]) -> str:
    more = f", and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def check_gpus(ranks: int, recipe: Recipe | None) -> Iterator[Finding]:
    """Compare the GPUs that torch sees with those of the driver, and with the needs of the ranks and the recipe.

    Args:
        ranks: the number of ranks on this machine; 0 if unknown.
        recipe: the recipe whose precision the GPUs must support, if any.
    """
    import torch

    try:
        told = _told_by_driver()
    except subprocess.SubprocessError as error:
        yield bad(
            "GPUs",
            f"nvidia-smi {_failure(error)}",
            "repair the driver until nvidia-smi answers: after an update its kernel module has another version "
            "(restart the machine), or a GPU hangs (dmesg names it)",
        )
        told = []
        if not torch.cuda.is_available():
            return
    if not torch.cuda.is_available():
        if told:
            yield bad(
                "GPUs",
                f"the driver has {len(told)} ({told[0]}), but torch {torch.__version__} can use none",
                "install a driver for CUDA "
                f"{torch.version.cuda or '(this torch is built for CPU: install the CUDA one)'}; in a container, set "
                "NVIDIA_DRIVER_CAPABILITIES=compute,utility; check CUDA_VISIBLE_DEVICES",
            )
        else:
            yield doubtful("GPUs", "none: training would use the CPU", "for GPUs in a container: docker run --gpus all")
        if recipe is not None and recipe.precision == "amp_bf16" and not has_bf16_instructions():
            yield doubtful("processor", "no bf16 instructions: amp_bf16 is far slower than fp32", "precision=fp32")
        return
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    names = ", ".join(sorted({f"{device.name} {device.total_memory / 2**30:.0f} GiB" for device in devices}))
    driver = f", driver {told[0].split(', ')[-1]}" if told else ""
    said = f"{len(devices)} × {names}, CUDA {torch.version.cuda}{driver}"
    weakest = min(device.major for device in devices)
    if ranks > len(devices):
        yield bad("GPUs", f"{said}: fewer than the {ranks} processes", f"composer -n {len(devices)}")
    elif (missing := _without_code(devices, torch.cuda.get_arch_list())) is not None:
        yield bad(
            "GPUs",
            f"{said}: torch {torch.__version__} has no code for {missing}",
            f"install a torch that is built for it; this one is for {', '.join(torch.cuda.get_arch_list())}",
        )
    elif weakest < AMPERE and recipe is not None and recipe.precision == "amp_bf16":
        yield bad("GPUs", f"{said}: without bf16", "set precision=fp32, or use GPUs from Ampere on")
    elif len({device.name for device in devices}) > 1:
        yield doubtful("GPUs", f"{said}: the slowest sets the pace", "use GPUs of one kind")
    else:
        yield good("GPUs", said)


def _without_code(devices: Sequence[Any], built_for: Sequence[str]) -> str | None:
    """Return the first architecture among GPUs that torch was not built for, such as sm_90; None if there is none.

    Code for sm_80 runs on all GPUs of generation 8 from 8.0 on; code for compute_80 can be compiled for any later GPU.
    """
    for device in devices:
        here = 10 * device.major + device.minor
        codes = [(name.partition("_")[0], int(re.sub(r"\D", "", name))) for name in built_for]
        if not any(
            (kind == "sm" and code // 10 == device.major and code <= here) or (kind == "compute" and code <= here)
            for kind, code in codes
        ):
            return f"sm_{here}"
    return None


def _told_by_driver() -> list[str]:
    """Return the lines of `nvidia-smi`, one per GPU: name, memory, driver version. Empty if there is no driver.

    Raises:
        subprocess.SubprocessError: nvidia-smi fails, or does not end in time.
    """
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    asked = subprocess.run(query, capture_output=True, text=True, timeout=SMI_SECONDS, check=True)
    return asked.stdout.strip().splitlines()


def _failure(error: subprocess.SubprocessError) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        said = " ".join(f"{error.stdout} {error.stderr}".split())
        return f"fails with status {error.returncode}: {said}"
    return f"does not answer within {SMI_SECONDS:g} s"


def check_attention(recipe: Recipe | None) -> Iterator[Finding]:
    """Check which attention backend would be used, and whether its results are correct."""
    import torch

    from rotary_foundry.models.layers.attention import check_implementation
    from rotary_foundry.utils.errors import ConfigurationError

    on_gpu = torch.cuda.is_available()
    if recipe is not None:
        try:
            check_implementation(recipe.model.attn_implementation, "cuda" if on_gpu else "cpu", recipe.precision)
        except ConfigurationError as error:
            yield bad("attention", one_line(error), "see 'Attention' in docs/models.md")
            return
    broken = False
    for package, generation in (("flash_attn", 2), ("flash_attn_interface", 3)):
        if find_spec(package) is None:
            continue
        try:
            import_module(package)
        except Exception as error:  # an undefined symbol raises ImportError, a missing CUDA RuntimeError
            broken = True
            yield (bad if on_gpu else doubtful)(
                "attention",
                f"{package} is installed and cannot be used: {one_line(error)}",
                f"rebuild FlashAttention {generation} for torch {torch.__version__}, or uninstall it: "
                "'varlen' attention does not need it",
            )
    if broken:
        return
    if not on_gpu:
        yield good("attention", "sdpa: torch's own, on CPU")
        return
    yield from _compare_on_gpu()


def _compare_on_gpu() -> Iterator[Finding]:
    import torch

    from rotary_foundry.models.layers.attention import choose
    from rotary_foundry.models.layers.attention_varlen import use_newer_kernels

    device = torch.device("cuda", torch.cuda.current_device())
    chosen = choose("auto", "cuda", torch.bfloat16)
    remedy = "set model.attn_implementation=sdpa, or install another torch for this GPU"
    try:
        off = attention_error(device, chosen)
    except Exception as error:  # a kernel of another architecture, or a FlashAttention that was built for another torch
        yield bad("attention", f"{chosen} fails on this GPU: {one_line(error)}", remedy)
        return
    if not off <= ROUNDING:
        yield bad("attention", f"{chosen} is off by {off:.2g} from sdpa in float32", remedy)
    else:
        kernels = use_newer_kernels("cuda") or f"torch {torch.__version__}'s own kernels"
        yield good("attention", f"{chosen} by {kernels}: within {off:.2g} of sdpa")


@dataclass(frozen=True)
class KnownFault:
    """Versions that compute something wrong on a generation of GPUs, as others have reported."""

    torch: str  # the affected versions
    generation: int  # the affected major compute capability
    attention: str  # the affected attention backend
    what: str
    source: str
    remedy: str


KNOWN_FAULTS = (
    KnownFault(
        torch=">=2.11,<2.14",
        generation=9,
        attention="sdpa",
        what="cuDNN's attention under a mask may give NaN for the gradient of queries in bf16",
        source="pytorch/pytorch#196678",
        remedy="set model.attn_implementation=auto, or install a newer torch",
    ),
)


def check_known_faults(recipe: Recipe | None) -> Iterator[Finding]:
    """Look for versions of torch that are known to compute something wrong on these GPUs in what a recipe uses."""
    import torch

    if recipe is None or recipe.precision != "amp_bf16" or not torch.cuda.is_available():
        return
    generations = {torch.cuda.get_device_properties(index).major for index in range(torch.cuda.device_count())}
    for fault in KNOWN_FAULTS:
        if (
            fault.generation in generations
            and recipe.model.attn_implementation == fault.attention
            and _within(torch.__version__, SpecifierSet(fault.torch))
        ):
            yield doubtful("versions", f"torch {torch.__version__} here: {fault.what} ({fault.source})", fault.remedy)


def attention_error(device: "torch.device", implementation: str) -> float:
    """Measure the largest difference between attention in bf16 and sdpa in float32: global, local and causal."""
    import torch

    from rotary_foundry.models.layers.attention import attention
    from rotary_foundry.models.layers.documents import Documents

    lengths = (37, 300, 175)
    cu_seqlens = torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)
    documents = Documents(cu_seqlens, max(lengths), sum(lengths))
    generator = torch.Generator(device).manual_seed(0)
    qkv = torch.randn(3, sum(lengths), 4, 64, device=device, generator=generator).bfloat16()
    worst = 0.0
    for window, causal in ((None, False), (128, False), (None, True)):
        out = attention(*qkv, documents, window, implementation, causal)
        exact = attention(*qkv.float(), documents, window, "sdpa", causal)
        worst = max(worst, (out.float() - exact).abs().max().item())
    return worst
