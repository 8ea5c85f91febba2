"""What the C library does with freed memory: kept for the next step of a fit on a CPU, instead of given back to the system."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

# mallopt's names in glibc's malloc.h
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
LARGEST = 2**31 - 1
MB = 2**20


@contextmanager
def kept() -> Iterator[bool]:
    """Keep freed memory inside the block, and give it back at its end; says whether the C library can (glibc).

    A training step makes and frees the same tensors as the one before, many of 30 to 100 MB. glibc gives blocks above 32 MB back at once,
    and the system clears every page of them again when they are next asked for: about a fifth of a float32 step of the paper's encoder on
    two cores (``benchmarks/training_step.py``). It concerns the whole process; a fit on a GPU has no use for it.
    """
    library = _glibc()
    if library is None:
        yield False
        return
    library.mallopt(MMAP_MAX, 0)
    library.mallopt(TRIM_THRESHOLD, LARGEST)
    try:
        yield True
    finally:
        library.mallopt(MMAP_MAX, 65536)  # its default
        # Once set, these no longer move by themselves: the values that glibc arrives at after a block of 32 MB or more was freed.
        library.mallopt(MMAP_THRESHOLD, 32 * MB)
        library.mallopt(TRIM_THRESHOLD, 64 * MB)
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    try:
        if not (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc"):
            return None
        library = ctypes.CDLL(None)
        return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
    except (AttributeError, OSError, TypeError, ValueError):  # not Linux, or another C library
        return None
