"""glibc's allocator, told to keep what is freed: on CPU, a step waits longer for fresh pages than for its arithmetic.

By default every tensor over 32 MB is a mapping of its own, given back when it is freed, and the next one faults in all
of its pages again (benchmarks/README.md has the figure).
"""

import contextlib
import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> None:
    """Serve large allocations from the heap, and never shrink it; does nothing where the C library is not glibc."""
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
