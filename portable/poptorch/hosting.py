"""The user's model while the device has newer weights than the host (spec sections 1 and 9).

`trainingModel` gives the user's model a class of its own and its parameters and buffers another one, so that
whatever reads them brings the weights back from the device first, once. `unwrap` undoes both.
"""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch

# Reading one of these from the model means reading weights.
_SYNCHRONISING = frozenset({"_parameters", "_buffers", "forward", "state_dict"})
_ALREADY_WRAPPED = (
    "Model has already been wrapped in 'poptorch.trainingModel'. Call model.destroy() on the model to unwrap before "
    "wrapping again."
)


class WeightSource:
    """The training executor behind a user's model, as seen by whoever reads the weights.

    `version` counts the changes of the weights on the device; `dirty` says that the host has not got the last one.
    """

    def __init__(self, fetch: Callable[[], None]):
        self._fetch = fetch
        self._suspended = 0
        self.version = 0
        self.dirty = False

    def changed(self) -> None:
        """The device has new weights."""
        self.version += 1
        self.dirty = True

    def sync(self) -> None:
        """Bring the weights to the host if they are newer on the device."""
        if self.dirty and not self._suspended:
            self.dirty = False
            with self.suspended():
                self._fetch()

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """Reads inside this context do not bring anything back (the engine's own, while copying)."""
        self._suspended += 1
        try:
            yield
        finally:
            self._suspended -= 1


_sources: weakref.WeakKeyDictionary[torch.nn.Module, WeightSource] = weakref.WeakKeyDictionary()
# Tensors of wrapped models -> their source. Tensors compare elementwise, so the key is the identity.
_tensor_sources: dict[int, WeightSource] = {}


def source_of(model: torch.nn.Module) -> WeightSource | None:
    """The training executor's weights behind `model`, if it, or the model it is a part of, is wrapped."""
    parameter = next(model.parameters(), None)
    return _sources.get(model) or _tensor_sources.get(id(parameter))


class _HostedParameter(torch.nn.Parameter):
    """A parameter whose reading brings the weights back from the device."""

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _read(func, args, kwargs)

    def __deepcopy__(self, memo: dict) -> torch.nn.Parameter:
        return memo.setdefault(id(self), torch.nn.Parameter(_plain(self), self.requires_grad))

    def __reduce_ex__(self, protocol: int) -> Any:
        return torch.nn.Parameter(_plain(self), self.requires_grad).__reduce_ex__(protocol)


class _HostedBuffer(torch.Tensor):
    """A buffer whose reading brings the weights back from the device."""

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _read(func, args, kwargs)

    def __deepcopy__(self, memo: dict) -> torch.Tensor:
        return memo.setdefault(id(self), _plain(self))

    def __reduce_ex__(self, protocol: int) -> Any:
        return _plain(self).__reduce_ex__(protocol)


# Asking for these does not read the values.
_METADATA = frozenset(
    getattr(torch.Tensor, name).__get__
    for name in ("shape", "dtype", "device", "requires_grad", "grad", "is_leaf", "grad_fn", "layout", "ndim")
) | {torch.Tensor.size, torch.Tensor.dim, torch.Tensor.numel, torch.Tensor.is_floating_point, torch.Tensor.stride}


def _read(func: Callable, args: tuple, kwargs: dict | None) -> Any:
    if func not in _METADATA:
        for value in (*args, *(kwargs or {}).values()):
            for item in value if isinstance(value, (list, tuple)) else (value,):
                source = _tensor_sources.get(id(item)) if isinstance(item, torch.Tensor) else None
                if source is not None:
                    source.sync()
    with torch._C.DisableTorchFunctionSubclass():
        return func(*args, **(kwargs or {}))


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """An ordinary tensor with a copy of the (synchronised) values."""
    return tensor.detach().clone()


def wrap(model: torch.nn.Module, fetch: Callable[[], None], owner: Any) -> WeightSource:
    """Give `model` the class PoptorchModel; `owner.destroy` becomes model.destroy.

    Raises RuntimeError if it has it already.
    """
    user_class = type(model)
    if getattr(user_class, "_poptorch_user_class", None) is not None:
        raise RuntimeError(_ALREADY_WRAPPED)
    source = WeightSource(fetch)

    class PoptorchModel(user_class):
        _poptorch_user_class = user_class

        def __getattribute__(self, name: str) -> Any:
            if name in _SYNCHRONISING:
                source.sync()
            return super().__getattribute__(name)

        def destroy(self) -> None:
            """Destroy the executor this model is wrapped in."""
            owner.destroy()

        def __deepcopy__(self, memo: dict) -> torch.nn.Module:
            source.sync()
            plain = user_class.__new__(user_class)
            memo[id(self)] = plain
            plain.__dict__.update(copy.deepcopy(vars(self), memo))
            return plain

        def __reduce_ex__(self, protocol: int) -> Any:
            source.sync()
            plain = user_class.__new__(user_class)
            plain.__dict__.update(vars(self))
            return plain.__reduce_ex__(protocol)

    PoptorchModel.__name__ = PoptorchModel.__qualname__ = "PoptorchModel"
    model.__class__ = PoptorchModel
    _sources[model] = source
    return source


def host(model: torch.nn.Module, source: WeightSource) -> None:
    """From now on reading a parameter or a buffer of `model` brings the weights back from the device."""
    for parameter in model.parameters():
        if type(parameter) is torch.nn.Parameter:
            parameter.__class__ = _HostedParameter
            _tensor_sources[id(parameter)] = source
    for buffer in model.buffers():
        if type(buffer) is torch.Tensor:
            buffer.__class__ = _HostedBuffer
            _tensor_sources[id(buffer)] = source


def unhost(model: torch.nn.Module) -> None:
    """The parameters and buffers of `model` are ordinary tensors again."""
    for parameter in model.parameters():
        if type(parameter) is _HostedParameter:
            _tensor_sources.pop(id(parameter), None)
            parameter.__class__ = torch.nn.Parameter
    for buffer in model.buffers():
        if type(buffer) is _HostedBuffer:
            _tensor_sources.pop(id(buffer), None)
            buffer.__class__ = torch.Tensor


def unwrap(model: torch.nn.Module) -> None:
    """`model` is what it was before `wrap`."""
    unhost(model)
    user_class = getattr(type(model), "_poptorch_user_class", None)
    if user_class is not None:
        model.__class__ = user_class
    _sources.pop(model, None)


@contextlib.contextmanager
def plain(model: torch.nn.Module) -> Iterator[None]:
    """Inside this context `model`'s tensors are ordinary ones, for tracing and copying."""
    source = source_of(model)
    if source is None:
        yield
        return
    hosted = any(type(parameter) is _HostedParameter for parameter in model.parameters())
    with source.suspended():
        unhost(model)
        try:
            yield
        finally:
            if hosted:
                host(model, source)


def executor_copy(model: torch.nn.Module) -> torch.nn.Module:
    """The shallow copy that an executor works on: submodules and parameters shared, top-level attributes its own."""
    duplicate = object.__new__(getattr(type(model), "_poptorch_user_class", None) or type(model))
    duplicate.__dict__.update(vars(model))
    return duplicate
