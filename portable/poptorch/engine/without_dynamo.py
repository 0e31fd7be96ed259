"""torch._dynamo stays out of a process that does not compile with it: its import takes as long as torch's own.

torch loads it all the same, for two things: torch._disable_dynamo, a decorator that keeps torch.compile out of some
methods (of optimizers, of the modes that see every operation), and settings that FakeTensorMode reads. Both are had
without the rest.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

_PACKAGE = "torch._dynamo"


class Needed(BaseException):
    """More of torch._dynamo is asked for than is there. No Exception: a program that catches those must not go on."""


@contextlib.contextmanager
def kept_out() -> Iterator[None]:
    """Inside this context torch._dynamo is its settings and a disable(); whoever wants more of it raises Needed.

    Without effect if it is loaded already. Afterwards it is as unknown as before, and an import loads it.
    """
    if _PACKAGE in sys.modules:
        yield
        return
    stand_in = _StandIn(_PACKAGE)
    sys.modules[_PACKAGE], sys.modules[stand_in.config.__name__] = stand_in, stand_in.config
    torch._dynamo = stand_in  # torch would load the package when this name is first used
    try:
        yield
    finally:
        del torch._dynamo, sys.modules[_PACKAGE], sys.modules[stand_in.config.__name__]


class _StandIn(types.ModuleType):
    """What is there while torch._dynamo is kept out."""

    def __init__(self, name: str):
        super().__init__(name)
        self.config, self.disable = _settings(), _disable

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(_PACKAGE) is not self:  # somebody has kept this module beyond its time
            return getattr(importlib.import_module(_PACKAGE), name)
        if name.startswith("__") and name != "__path__":  # of every module, and asked for by who looks at all
            raise AttributeError(f"module {_PACKAGE!r} has no attribute {name!r}")
        raise Needed(f"{_PACKAGE}.{name}")


def guarded_later(*methods: Callable) -> None:
    """These methods of torch's that torch._disable_dynamo has decorated load nothing when they are called first."""
    for method in methods:
        if getattr(method, "__globals__", {}).get("__name__") == "torch._compile":
            vars(method.__wrapped__).setdefault("__dynamo_disable", _disable(method.__wrapped__))


def _disable(function: Callable, *args: Any, **kwargs: Any) -> Callable:
    """As torch._dynamo.disable, but guards from when torch._dynamo is loaded: nothing compiles before."""
    guarded = None

    def call(*call_args: Any, **call_kwargs: Any) -> Any:
        nonlocal guarded
        if guarded is None:
            disable = getattr(sys.modules.get(_PACKAGE), "disable", _disable)  # it may just be loading
            if disable is _disable:
                return function(*call_args, **call_kwargs)
            guarded = disable(function, *args, **kwargs)
        return guarded(*call_args, **call_kwargs)

    return call


@functools.cache
def _settings() -> types.ModuleType:
    """The module torch._dynamo.config, from its file, with what the environment sets."""
    name = f"{_PACKAGE}.config"
    spec = importlib.util.spec_from_file_location(name, Path(torch.__file__).parent / "_dynamo" / "config.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # it looks for itself there
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module
