"""glibc's allocator, told what to do with what is freed: a training keeps it, a preparation gives it back.

On CPU a training step waits longer for fresh pages than for its arithmetic. By default every tensor over 32 MB is a
mapping of its own, given back when it is freed, and the next one faults in all of its pages again (benchmarks/README.md
has the figure). A preparation's worker does many tasks, of whose millions of small strings each leaves holes in the
heap, and its size creeps up with the size of the corpus.
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


def give_back_freed_memory() -> None:
    """Give the system every whole page that is free; does nothing where the C library is not glibc."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
