"""Where the tensors of a program are while it is traced (spec section 1).

What the program computes is on the device. Tracing holds fake tensors of the CPU, which is what `tensor.device` says,
and the engine moves the graph to its device afterwards. A tensor that forward() takes or makes elsewhere is a host
tensor.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._subclasses import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from ... import notices
from ...poptorch_core import createPoptorchError
from . import host_tensors

# Made on the device unless the program says where.
_FACTORIES = frozenset(
    {torch.arange, torch.empty, torch.full, torch.full_like, torch.linspace, torch.logspace, torch.ones, torch.rand}
    | {torch.randint, torch.randn, torch.randperm, torch.range, torch.tensor, torch.zeros, torch.zeros_like}
    | {torch.normal}
)
_LIKE = frozenset({torch.full_like, torch.zeros_like})
# A host tensor becomes one of the device's by these.
_MOVES = frozenset({torch.Tensor.to, torch.Tensor.type_as, torch.as_tensor, torch.tensor})
# Constructors of host tensors.
_HOST_TYPES = ("LongTensor", "IntTensor", "ShortTensor", "CharTensor", "ByteTensor", "BoolTensor", "HalfTensor")
_HOST_TYPES += ("FloatTensor", "DoubleTensor")


class _HostType:
    """torch.LongTensor and its like while tracing: makes a tensor outside the trace."""

    def __init__(self, kind: Any):
        self.kind = kind

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        with _disable_current_modes():
            return self.kind(*args, **kwargs)

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, self.kind)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kind, name)


@contextlib.contextmanager
def host_constructors() -> Iterator[None]:
    """Inside this context torch.LongTensor and its like make host tensors."""
    kinds = {name: getattr(torch, name) for name in _HOST_TYPES}
    for name, kind in kinds.items():
        setattr(torch, name, _HostType(kind))
    try:
        yield
    finally:
        for name, kind in kinds.items():
            setattr(torch, name, kind)


def on_device(value: Any) -> bool:
    """Whether `value` is a tensor of the program, perhaps in the wrapping of torch.vmap.

    poptorch.Error for the wrapping of torch.func.grad and its like: tracing would record their tensors as constants.
    """
    while isinstance(value, torch.Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(value):
        if not torch._C._functorch.is_batchedtensor(value):
            raise createPoptorchError(
                "forward() takes a derivative with torch.func, which cannot be compiled: use torch.autograd.grad(), "
                "which can."
            )
        value = torch._C._functorch.get_unwrapped(value)
    return isinstance(value, FakeTensor)


def on_host(func: Callable, args: tuple, kwargs: dict[str, Any]) -> torch.Tensor | None:
    """The tensor that `func` makes on the host, because the program says device="cpu"; None if it does not."""
    if func not in _FACTORIES or any(map(on_device, torch.utils._pytree.tree_leaves((args, kwargs)))):
        return None
    device = kwargs.get("device")
    if device is None:
        name = func.__name__
        notices.once(("factory", name), f"No device set in torch.{name}() in forward(): the tensor is made on the IPU.")
        return None
    if device != "cpu":  # a torch.device may be that of another tensor of the program
        return None
    return host_tensors.outside(func, *args, **kwargs)


def stays_on_host(func: Callable, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether what `func` makes of host tensors alone is on the host, too: it moves nothing to the device."""
    if func in _FACTORIES and func is not torch.normal:  # which is one only where it takes numbers
        return kwargs.get("device") == "cpu"
    return func not in _MOVES or not any(map(_names_device, (*args[1:], kwargs.get("device"))))


def _names_device(value: Any) -> bool:
    """Whether `value` is a device that is not said to be the host's: a torch.device may be that of another tensor."""
    return isinstance(value, torch.device) or (isinstance(value, str) and value != "cpu")


def operands(func: Callable, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The arguments of `func` with devices as tracing knows them. poptorch.Error if one is a host tensor."""
    if func in _LIKE and host_tensors.is_host(args[0]):
        args = (torch.empty(args[0].shape, dtype=args[0].dtype), *args[1:])
    if func in _MOVES:
        args = tuple(host_tensors.snapshot(value) if host_tensors.is_host(value) else value for value in args)
    else:
        args, kwargs = host_tensors.numbers(func, args, kwargs, every=func in _FACTORIES)
        check_on_device(func, args, kwargs)
    args = tuple(map(_as_traced, args))
    return args, {**kwargs, "device": _as_traced(kwargs["device"])} if "device" in kwargs else kwargs


def adopted(func: Callable, result: Any) -> Any:
    """What `func` returned; a host tensor that it moves to the device becomes a constant of the program."""
    moved = func in _MOVES and isinstance(result, torch.Tensor) and not on_device(result)
    return result.clone() if moved else result


def check_on_device(func: Callable, args: tuple, kwargs: dict[str, Any]) -> None:
    """Raises poptorch.Error if a host tensor is an operand of `func`."""
    for value in torch.utils._pytree.tree_leaves((args, kwargs)):
        if isinstance(value, torch.Tensor) and not on_device(value):
            raise createPoptorchError(
                f"Expected an IPU tensor but got tensor(device=cpu) of shape {tuple(value.shape)} in "
                f"{getattr(func, '__name__', func)}. A tensor that forward() takes from outside the model is not on "
                'the device: pass it as an input, register it as a buffer, or move it with .to("ipu").'
            )


def _as_traced(value: Any) -> Any:
    """A device of the program's ("ipu", "ipu:1", torch.device("ipu")) as tracing has it; other values as they are."""
    if isinstance(value, _HostType):  # x.type(torch.LongTensor) names a type
        return value.kind
    if isinstance(value, str) and (value == "ipu" or value.startswith("ipu:")):
        return "cpu"
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == "ipu" else value
