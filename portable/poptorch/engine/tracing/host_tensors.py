"""Operations on host tensors alone inside forward(): they run while it is traced, as any Python does (spec section 11).

A host tensor is one that forward() takes from outside the model (an attribute that is no buffer, a closure, a global)
or makes with device="cpu". Its values are known, so `.item()`, `int()` and branches on it are ordinary Python. What
is computed from it is a host tensor again; as an operand beside a tensor of the program it is refused (devices.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

# Their arguments beside the tensor are numbers: a host tensor among them is a number, too.
_TAKE_SIZES = (
    "chunk expand flatten narrow permute repeat reshape roll select split squeeze tile topk transpose unflatten unfold "
    "unsqueeze view"
)
_NEW = "new_empty new_full new_ones new_zeros"
_SIZED = frozenset(
    getattr(owner, name)
    for owner in (torch, torch.Tensor)
    for name in f"{_TAKE_SIZES} {_NEW}".split()
    if hasattr(owner, name)
) | {torch.nn.functional.pad, torch.nn.functional.interpolate}
_INDEXED = frozenset({torch.Tensor.__getitem__, torch.Tensor.__setitem__})


def is_host(value: Any) -> bool:
    """Whether `value` is a tensor that is none of the program's."""
    if not isinstance(value, torch.Tensor) or isinstance(value, FakeTensor):
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(value)


def are_alone(args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether there are tensors among the arguments and all of them are host tensors."""
    if args and isinstance(args[0], FakeTensor):  # most calls
        return False
    tensors = [leaf for leaf in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    return bool(tensors) and all(map(is_host, tensors))


def outside(function: Callable, *args: Any, **kwargs: Any) -> Any:
    """`function(*args, **kwargs)` as if nothing were being traced."""
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        return function(*args, **kwargs)


def snapshot(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of a host tensor as it is now: forward(), or the program later, may change the tensor itself."""
    return outside(lambda: tensor.detach().clone())


def numbers(func: Callable, args: tuple, kwargs: dict[str, Any], every: bool = False) -> tuple[tuple, dict[str, Any]]:
    """The arguments of `func` with Python's numbers for the host tensors that stand for sizes and indices.

    With `every` for all that have one element, whatever `func` is.
    """
    if func in _INDEXED:
        return (args[0], _index(args[1]), *args[2:]), kwargs
    if every or func in _SIZED:
        return torch.utils._pytree.tree_map(_number, (args, kwargs))
    return args, kwargs


def _number(value: Any) -> Any:
    return outside(value.item) if is_host(value) and value.numel() == 1 else value


def _index(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_index, value))
    if isinstance(value, slice):
        return slice(_number(value.start), _number(value.stop), _number(value.step))
    whole = is_host(value) and not value.dim() and value.dtype not in (torch.bool, torch.uint8)
    return _number(value) if whole else value


class HostWrites:
    """What forward() wrote to host tensors, so that it can be taken back before forward() runs a second time."""

    def __init__(self) -> None:
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}  # by address: now, then

    def run(self, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """`func` of host tensors alone."""
        if _may_write(func) or "out" in kwargs:
            for value in (*args[:1], kwargs.get("out")):
                if is_host(value) and value.layout is torch.strided:
                    storage = outside(value.untyped_storage)
                    self._before.setdefault(storage.data_ptr(), (storage, outside(storage.clone)))
        return outside(func, *args, **kwargs)

    def take_back(self) -> None:
        """Host tensors are what they were."""
        for storage, before in self._before.values():
            storage.copy_(before)
        self._before.clear()


def _may_write(func: Callable) -> bool:
    """Whether `func` may change its first argument: `add_`, `__iadd__`, `__setitem__`, the setter of an attribute."""
    name = getattr(func, "__name__", "")
    return name in ("__setitem__", "__set__") or (name.endswith("_") and not name.endswith("__")) or name[:3] == "__i"
