"""How the process treats memory that tensors on a CPU have freed."""

from __future__ import annotations

import ctypes
import functools

# Parameters of mallopt(3), glibc.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_KEPT = 1 << 30  # bytes
_NEVER = -1


@functools.cache
def keep_freed_memory() -> None:
    """Let the process keep freed blocks of up to 1 GiB for its next ones instead of giving them back.

    Every step frees and allocates the same activations. By default each block of more than 32 MB comes fresh from the
    system, page by page, and is given back: up to a third of a training step on a virtual machine. The peak of the
    process stays what it is. Without effect where the C library has no such switch.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT):
        mallopt(_TRIM_THRESHOLD, _NEVER)
