"""A process that may take no more memory than it is told, for what must not need any (Linux)."""

from __future__ import annotations

import contextlib
import pathlib
import resource
from collections.abc import Iterator

import pytest
import torch

_MEBIBYTE = 1 << 20


def _data_bytes() -> int:
    """Private memory of this process that can be written to, which RLIMIT_DATA limits."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmData:")[1].split()[0]) * 1024


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """Inside this context there is room for so many bytes more, which is checked at its end, and not for half more."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_data_bytes() + size, before[1]))
    ballast = []
    try:
        with contextlib.suppress(RuntimeError):  # what was freed before and kept for later counts too
            while True:
                ballast.append(torch.empty(_MEBIBYTE // 4))
        del ballast[-(size // _MEBIBYTE) :]
        yield
        with pytest.raises(RuntimeError, match="memory"):
            torch.empty(size // 4 * 3 // 2)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
