"""Memory for large CPU tensors that is used again without holes, in place of torch's own allocator.

torch's calls posix_memalign, with glibc 2.36 to the effect that a freed tensor's place is often too small for the next
one of its size. The reserve in tensor_reserve.h fills each. `make` builds a library beside this file, for the torch
that is installed; without one, or with one for another torch, torch's own allocator serves.
POPTORCH_PORTABLE_TENSOR_MEMORY names another library, or is "none".
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

import torch

from ... import notices
from . import HINT

LIBRARY = Path(__file__).with_name("poptorch_tensor_memory.so")
VARIABLE = "POPTORCH_PORTABLE_TENSOR_MEMORY"
SMALLEST, LARGEST = 64 << 10, 1 << 30  # bytes: of other sizes the C library serves


class Statistics(ctypes.Structure):
    """What the reserve holds: bytes in all, free ones, the number of free blocks, and of those in use."""

    _fields_ = [(name, ctypes.c_int64) for name in ("bytes", "free_bytes", "free_blocks", "blocks")]


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The library, if there is one for this torch."""
    wanted = os.environ.get(VARIABLE, "")
    path = Path(wanted) if wanted else LIBRARY
    if wanted == "none" or not (wanted or path.is_file()):
        return None
    running = f"{torch.__version__} {torch.version.git_version}"
    try:
        found = ctypes.CDLL(str(path))
        found.poptorch_tensor_memory_torch.restype = ctypes.c_char_p
        built_for = found.poptorch_tensor_memory_torch().decode()
    except (OSError, AttributeError) as error:
        return _left_alone(f"{path} cannot be loaded ({error})")
    if built_for != running:
        return _left_alone(f"{path} is for torch {built_for}, not {running}")
    found.poptorch_tensor_memory_install.restype = ctypes.c_bool
    found.poptorch_tensor_memory_statistics.argtypes = [ctypes.POINTER(Statistics)]
    return found


def _left_alone(why: str) -> None:
    notices.logger.debug("%s: torch's own allocator serves; %s.", why, HINT)


@functools.cache
def install() -> bool:
    """Have torch take memory of large CPU tensors from the reserve, from now on and for good. Returns whether it does.

    It does not without the library, nor where a program has given torch another allocator.
    """
    if _library() is None:
        return False
    if not _library().poptorch_tensor_memory_install():
        notices.logger.debug("torch has another allocator of CPU tensors than its own: that one stays.")
        return False
    return True


def give_back() -> None:
    """What is free in the reserve goes back to the system."""
    if _library() is not None:
        _library().poptorch_tensor_memory_give_back()


def statistics() -> Statistics | None:
    """What the reserve holds now; None without the library."""
    if _library() is None:
        return None
    found = Statistics()
    _library().poptorch_tensor_memory_statistics(found)
    return found
