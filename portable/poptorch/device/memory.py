"""How the process treats memory that tensors on a CPU have freed."""

from __future__ import annotations

import ctypes
import functools

import torch

from .native import tensor_memory

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

    Tensors of 64 KiB to 1 GiB come from a reserve of the runtime's own where `make` has built that
    (native/tensor_memory.py): glibc leaves holes between them that the next ones cannot fill. Training GPT-2 small in
    half, 4 x 256 tokens, takes 2.19 GB with it instead of 2.35, and 3.10 instead of 3.23 to 3.31 in float32.

    What is touched for the first time, mostly in the first call, stays in pages of 4 KiB, at 0.7 s of processor time a
    GB (measured on a virtual machine). Huge pages are the user's choice, by torch's THP_MEM_ALLOC_ENABLE=1, of which
    the reserve knows: they took 0.1 to 0.2 s a GB where the host still had the memory, but 1.7 to 3.9 s where it had
    taken it back.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT):
        mallopt(_TRIM_THRESHOLD, _NEVER)
    tensor_memory.install()


def give_back_freed_memory() -> None:
    """Once: what is free now goes back to the system. For memory that will not be needed again in such amounts."""
    tensor_memory.give_back()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def ran_out(error: RuntimeError) -> bool:
    """Whether torch raised it for want of memory; on a CPU it has no class of its own for that."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
