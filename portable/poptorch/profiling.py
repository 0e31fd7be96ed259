"""poptorch.profiling: named ranges of a program's own, seen by torch.profiler."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch


class Channel:
    """A group of ranges; they are called `<name>::<range>` in a profile of torch.profiler.

    Args:
        name: of the group.
    """

    def __init__(self, name: str):
        self._name = name

    def tracepoint(self, name: str) -> contextlib.AbstractContextManager:
        """`with channel.tracepoint("load"):` — a range."""
        return torch.profiler.record_function(f"{self._name}::{name}")

    def instrument(self, obj: Any, *methods: str) -> None:
        """Make a range of every call of these methods of `obj`; of all its public methods if none is named."""
        names = methods or [name for name in dir(obj) if not name.startswith("_") and callable(getattr(obj, name))]
        for name in names:
            setattr(obj, name, self._ranged(getattr(obj, name), name))

    def _ranged(self, method: Any, name: str) -> Any:
        @functools.wraps(method)
        def ranged(*args: Any, **kwargs: Any) -> Any:
            with self.tracepoint(name):
                return method(*args, **kwargs)

        return ranged
