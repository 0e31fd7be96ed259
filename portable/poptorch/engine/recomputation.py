"""Segments that are computed again in the backward pass, and who looks on while they are."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

Watch = Callable[[], AbstractContextManager]
_watch: Watch = contextlib.nullcontext


@contextlib.contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Of what is computed inside for the first time, `watch()` is around the second time."""
    global _watch
    before, _watch = _watch, watch
    try:
        yield
    finally:
        _watch = before


def recomputed(module: torch.nn.Module, arguments: list[Any]) -> Any:
    """`module(*arguments)`, of which the backward pass keeps the arguments and computes the rest again."""
    return checkpoint(module, *arguments, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), _watch()))
