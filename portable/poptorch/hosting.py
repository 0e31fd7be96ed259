"""The user's model while the device has newer weights than the host (spec sections 1 and 9).

`trainingModel` gives the user's model a class of its own and its parameters and buffers another one, so that
whatever reads them brings the weights back from the device first, once. `unwrap` undoes both.
"""

from __future__ import annotations

import contextlib
import copy
import copyreg
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .engine import replica_groups
from .enums import CommGroupType, VariableRetrievalMode
from .options_dict import require, require_positive_int
from .poptorch_core import createPoptorchError

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
        self.used = False  # a program was compiled for the weights
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


def source_of(model: torch.nn.Module) -> WeightSource | None:
    """The training executor's weights behind `model`, if it, or the model it is a part of, is wrapped."""
    source = getattr(type(model), "_poptorch_source", None)
    if source is not None:
        return source
    return next((_source(tensor) for tensor in _tensors(model) if type(tensor) in _HOSTED), None)


def _tensors(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _source(tensor: torch.Tensor) -> WeightSource:
    return tensor.__dict__["_poptorch_source"]


class _HostedParameter(torch.nn.Parameter):
    """A parameter whose reading brings the weights back from the device."""

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _read(func, args, kwargs)

    def replicaGrouping(
        self, comm_group_type: CommGroupType, shards: int, variable_retrieval_mode: VariableRetrievalMode
    ) -> None:
        """Give groups of `shards` replicas a value each, before the model is compiled (see engine.replica_groups).

        Raises AssertionError for an argument of another type, poptorch.Error for a scalar or a compiled model.
        """
        require(
            isinstance(comm_group_type, CommGroupType),
            f"comm_group_type must be a poptorch.CommGroupType, got {comm_group_type!r}",
        )
        require_positive_int("shards", shards)
        require(
            isinstance(variable_retrieval_mode, VariableRetrievalMode),
            f"variable_retrieval_mode must be a poptorch.VariableRetrievalMode, got {variable_retrieval_mode!r}",
        )
        if _source(self).used:
            raise createPoptorchError("replicaGrouping() must be called before the model is compiled.")
        grouping = replica_groups.ReplicaGrouping(comm_group_type, shards, variable_retrieval_mode)
        replica_groups.set_grouping(self, grouping)

    def __repr__(self) -> str:
        return repr(torch.nn.Parameter(_plain(self), self.requires_grad))

    def __deepcopy__(self, memo: dict) -> torch.nn.Parameter:
        return memo.setdefault(id(self), torch.nn.Parameter(_plain(self), self.requires_grad))

    def __reduce_ex__(self, protocol: int) -> Any:
        return torch.nn.Parameter(_plain(self), self.requires_grad).__reduce_ex__(protocol)


class _HostedBuffer(torch.Tensor):
    """A buffer whose reading brings the weights back from the device."""

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _read(func, args, kwargs)

    def __repr__(self) -> str:
        return repr(_plain(self))

    def __deepcopy__(self, memo: dict) -> torch.Tensor:
        return memo.setdefault(id(self), _plain(self))

    def __reduce_ex__(self, protocol: int) -> Any:
        return _plain(self).__reduce_ex__(protocol)


_HOSTED = {_HostedParameter: torch.nn.Parameter, _HostedBuffer: torch.Tensor}  # class -> what it was before

# Asking for these does not read the values.
_METADATA = frozenset(
    getattr(torch.Tensor, name).__get__
    for name in ("shape", "dtype", "device", "requires_grad", "grad", "is_leaf", "grad_fn", "layout", "ndim")
) | {torch.Tensor.size, torch.Tensor.dim, torch.Tensor.numel, torch.Tensor.is_floating_point, torch.Tensor.stride}


def _read(func: Callable, args: tuple, kwargs: dict | None) -> Any:
    if func not in _METADATA:
        for value in (*args, *(kwargs or {}).values()):
            for item in value if isinstance(value, (list, tuple)) else (value,):
                if type(item) in _HOSTED:
                    _source(item).sync()
    with torch._C.DisableTorchFunctionSubclass():
        return func(*args, **(kwargs or {}))


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """An ordinary tensor with a copy of the (synchronised) values."""
    return tensor.detach().clone()


def wrap(model: torch.nn.Module, source: WeightSource, destroy: Callable[[], None], loaded: Callable[[], None]) -> None:
    """Give `model` the class PoptorchModel, whose methods read through `source`.

    model.destroy() calls `destroy`; model.load_state_dict() calls `loaded` when the host has the new weights.
    Raises RuntimeError if it has that class already.
    """
    user_class = type(model)
    if getattr(user_class, "_poptorch_user_class", None) is not None:
        raise RuntimeError(_ALREADY_WRAPPED)

    class PoptorchModel(user_class):
        _poptorch_user_class = user_class
        _poptorch_source = source

        def __getattribute__(self, name: str) -> Any:
            if name in _SYNCHRONISING:
                source.sync()
            return super().__getattribute__(name)

        def destroy(self) -> None:
            """Destroy the executor this model is wrapped in."""
            destroy()

        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return _copies(super().state_dict(*args, **kwargs))

        def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
            result = super().load_state_dict(*args, **kwargs)
            loaded()
            return result

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
            function, arguments, *rest = plain.__reduce_ex__(protocol)
            if function is copyreg.__newobj__:  # which pickle accepts for objects of this very class only
                function, arguments = copyreg._reconstructor, (user_class, object, None)
            return (function, arguments, *rest)

    PoptorchModel.__name__ = PoptorchModel.__qualname__ = "PoptorchModel"
    model.__class__ = PoptorchModel
    host(model, source)


def _copies(state: Any) -> Any:
    """`state` with copies in the place of its tensors: later training does not change them. Ties are kept."""
    copies: dict[Any, torch.Tensor] = {}
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            key = (value.data_ptr(), value.shape, value.stride(), value.dtype)
            if key not in copies:
                copies[key] = _plain(value)
            state[name] = copies[key]
    return state


def host(model: torch.nn.Module, source: WeightSource) -> None:
    """From now on reading a parameter or a buffer of `model` brings the weights back from the device."""
    for tensor in _tensors(model):
        hosted = next((hosted for hosted, usual in _HOSTED.items() if type(tensor) is usual), None)
        if hosted is not None:
            tensor.__class__ = hosted
            tensor.__dict__["_poptorch_source"] = source


def unhost(model: torch.nn.Module) -> None:
    """The parameters and buffers of `model` are ordinary tensors again."""
    for tensor in _tensors(model):
        if type(tensor) in _HOSTED:
            del tensor.__dict__["_poptorch_source"]
            tensor.__class__ = _HOSTED[type(tensor)]


def unwrap(model: torch.nn.Module) -> None:
    """`model` is what it was before `wrap`."""
    unhost(model)
    for parameter in model.parameters():
        replica_groups.forget(parameter)
    user_class = getattr(type(model), "_poptorch_user_class", None)
    if user_class is not None:
        model.__class__ = user_class


@contextlib.contextmanager
def plain(model: torch.nn.Module) -> Iterator[None]:
    """Inside this context `model`'s tensors are ordinary ones, for tracing and copying."""
    source = source_of(model)
    if source is None:
        yield
        return
    hosted = any(type(tensor) in _HOSTED for tensor in _tensors(model))
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
