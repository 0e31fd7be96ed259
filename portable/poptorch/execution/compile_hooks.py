"""Functions that a program has called around every compilation (spec section 10)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch.utils.hooks import RemovableHandle

_before: OrderedDict[int, Callable[[], None]] = OrderedDict()
_after: OrderedDict[int, Callable[[], None]] = OrderedDict()


def _register(hooks: OrderedDict[int, Callable[[], None]], hook: Callable[[], None]) -> RemovableHandle:
    if not callable(hook):
        raise RuntimeError(f"A compile hook must be callable, got {type(hook)}.")
    handle = RemovableHandle(hooks)
    hooks[handle.id] = hook
    return handle


def registerPreCompileHook(hook: Callable[[], None]) -> RemovableHandle:
    """Call `hook` in every compilation, inside the trace and before forward(). RuntimeError if it is not callable."""
    return _register(_before, hook)


def registerPostCompileHook(hook: Callable[[], None]) -> RemovableHandle:
    """Call `hook` after every compilation, a failed one included. RuntimeError if it is not callable."""
    return _register(_after, hook)


def run_before() -> None:
    """The hooks of registerPreCompileHook, in their order."""
    for hook in list(_before.values()):
        hook()


def run_after() -> None:
    """The hooks of registerPostCompileHook, in their order."""
    for hook in list(_after.values()):
        hook()
