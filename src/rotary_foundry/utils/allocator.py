"""Configure glibc's allocator: training keeps freed memory, preparation returns it to the system.

On CPU, a training step waits longer for fresh pages than for its arithmetic. By default every tensor over 32 MB has its
own mapping, which is unmapped when the tensor is freed, so that the next one faults in all of its pages again
(benchmarks/README.md has the figure). A worker of preparation runs many tasks. Their millions of small strings leave
holes in the heap, so its size would grow with the size of the corpus.
"""

import contextlib
import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> None:
    """Serve large allocations from the heap, and never shrink it. Does nothing if the C library is not glibc."""
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def give_back_freed_memory() -> None:
    """Return every free page to the system. Does nothing if the C library is not glibc."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
