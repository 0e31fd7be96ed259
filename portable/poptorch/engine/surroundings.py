"""Modes of torch that a caller may be in, and that have no effect on a PopTorch program: it is what it is anywhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from .. import notices

_HOST = torch.device("cpu")


@contextlib.contextmanager
def left_outside() -> Iterator[None]:
    """Inside this context, which is that of a call, regions of autocast and a default device have no effect.

    In a region around a training loop autocast would keep the weights' casts from the first call on, and every later
    one compute with the first one's weights. On a default device the memory would be that kernels of the CPU write to.
    """
    regions = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    elsewhere = torch.get_default_device() != _HOST
    if not regions and not elsewhere:
        yield
        return
    if regions:
        _tell()
    with contextlib.ExitStack() as stack:
        for kind in regions:
            stack.enter_context(torch.autocast(kind, enabled=False))
        if elsewhere:
            stack.enter_context(_HOST)
        yield


@contextlib.contextmanager
def without_autocast() -> Iterator[None]:
    """Inside this context, in which a model is traced, a region of autocast that it begins is none."""
    enter, leave = torch.autocast.__enter__, torch.autocast.__exit__

    def entered(self: torch.autocast) -> torch.autocast:
        _tell()
        return self

    torch.autocast.__enter__, torch.autocast.__exit__ = entered, lambda self, *error: None
    try:
        yield
    finally:
        torch.autocast.__enter__, torch.autocast.__exit__ = enter, leave


def _tell() -> None:
    """The device has no such thing, types are the program's."""
    notices.once("autocast", "torch.autocast has no effect in a PopTorch model: use model.half() instead.")
