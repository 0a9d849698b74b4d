"""Ask the processor for its instruction sets."""

from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")


def has_bf16_instructions() -> bool:
    """Return whether the processor multiplies matrices in bf16; without such instructions float32 is far faster.

    Linux lists `avx512_bf16` and `amx_bf16` among the flags on x86, and `bf16` among the features on ARM.
    """
    return not CPU_INFO.exists() or "bf16" in CPU_INFO.read_text(encoding="utf-8")
