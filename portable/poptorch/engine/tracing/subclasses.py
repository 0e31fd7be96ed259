"""Subclasses of torch.Tensor made in forward(): tracing cannot follow what they do, so that they are refused."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from ...poptorch_core import Error, createPoptorchError
from . import host_tensors

_OF_TENSORS = ("_make_subclass", "as_subclass")  # made of a tensor; _make_wrapper_subclass is given its shape alone
_CONSTRUCTED = "Creating a new Tensor subclass"


@contextlib.contextmanager
def refused() -> Iterator[None]:
    """Inside this context making a tensor of a subclass that is not torch's own raises poptorch.Error.

    Of a host tensor it may be made.
    """
    before = {name: vars(torch.Tensor).get(name) for name in (*_OF_TENSORS, "_make_wrapper_subclass")}
    make, wrap, cast = torch.Tensor._make_subclass, torch.Tensor._make_wrapper_subclass, torch.Tensor.as_subclass

    def _make_subclass(cls: type, data: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        _check(cls, data)
        return make(cls, data, *args, **kwargs)

    def _make_wrapper_subclass(cls: type, *args: Any, **kwargs: Any) -> torch.Tensor:
        _check(cls)
        return wrap(cls, *args, **kwargs)

    def as_subclass(self: torch.Tensor, cls: type) -> torch.Tensor:
        _check(cls, self)
        return cast(self, cls)

    torch.Tensor._make_subclass = staticmethod(_make_subclass)
    torch.Tensor._make_wrapper_subclass = staticmethod(_make_wrapper_subclass)
    torch.Tensor.as_subclass = as_subclass
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith(_CONSTRUCTED):
            raise
        raise _refusal(str(error).removeprefix(_CONSTRUCTED).split()[0]) from error
    finally:
        for name, value in before.items():
            if value is None:
                delattr(torch.Tensor, name)
            else:
                setattr(torch.Tensor, name, value)


def _check(cls: type, data: Any = None) -> None:
    if not cls.__module__.startswith("torch") and not host_tensors.is_host(data):
        raise _refusal(cls.__name__)


def _refusal(name: str) -> Error:
    return createPoptorchError(
        f"forward() makes a tensor of the class {name}, a subclass of torch.Tensor, which cannot be compiled: use "
        "plain tensors and functions of them in forward(), and make the subclass of what the executor returns."
    )
