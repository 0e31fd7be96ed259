"""The user's model while the device has newer weights than the host (spec sections 1 and 9).

`trainingModel` gives the user's model a class of its own and its parameters and buffers another one, so that
whatever reads them brings the weights back from the device first, once. `unwrap` undoes both.
"""

from __future__ import annotations

import contextlib
import copy
import copyreg
import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from ..checks import require, require_positive_int
from ..engine.processes import collecting
from ..engine.processes.collecting import Owned
from ..engine.running import replica_groups
from ..enums import CommGroupType, VariableRetrievalMode
from ..poptorch_core import createPoptorchError

# In the __dict__ of a tensor: the executors that train it, and whether one that does not was compiled for it.
_SOURCES, _COMPILED = "_poptorch_sources", "_poptorch_compiled"
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

    any_made = False
    _changes = itertools.count(1)

    def __init__(self, fetch: Callable[[], None]):
        WeightSource.any_made = True
        self._fetch = fetch
        self._suspended = 0
        self.used = False  # a program was compiled for the weights
        self.version = 0
        self.dirty = False
        self.last_change = 0  # among those of all sources

    def changed(self) -> None:
        """The device has new weights."""
        self.version += 1
        self.dirty = True
        self.last_change = next(self._changes)

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
    if source is not None or not WeightSource.any_made:  # then there is nobody to look for
        return source
    return next((_sources(tensor)[0] for tensor in _tensors(model) if type(tensor) in _HOSTED), None)


def sync(model: torch.nn.Module) -> None:
    """Bring the weights of `model` to the host from every device that has newer ones."""
    sources = {source for tensor in _tensors(model) if type(tensor) in _HOSTED for source in _sources(tensor)}
    source = source_of(model)
    _sync(sources if source is None else sources | {source})


def _sync(sources: Iterable[WeightSource]) -> None:
    """The weights of several executors that share them are those of the one that trained last."""
    for source in sorted(sources, key=lambda source: source.last_change):
        source.sync()


def _tensors(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _sources(tensor: torch.Tensor) -> tuple[WeightSource, ...]:
    """Of a hosted tensor; several training executors may share it (as parts of different models)."""
    return tensor.__dict__[_SOURCES]


class _GroupedParameter(torch.nn.Parameter):
    """A parameter of an executor's model, of which groups of replicas may have a value each."""

    def replicaGrouping(
        self, comm_group_type: CommGroupType, shards: int, variable_retrieval_mode: VariableRetrievalMode
    ) -> None:
        """Give groups of `shards` replicas a value each, before the model is compiled (see engine.replica_groups).

        `shards` means nothing where the groups are all replicas or each by itself, and may be 0 then.
        Raises AssertionError for an argument of another type, poptorch.Error for a scalar or a compiled model.
        """
        require(
            isinstance(comm_group_type, CommGroupType),
            f"comm_group_type must be a poptorch.CommGroupType, got {comm_group_type!r}",
        )
        if comm_group_type in (CommGroupType.All, CommGroupType.NoGrouping):
            require(type(shards) is int and shards >= 0, f"shards must be an integer of at least 0, got {shards!r}")
        else:
            require_positive_int("shards", shards)
        require(
            isinstance(variable_retrieval_mode, VariableRetrievalMode),
            f"variable_retrieval_mode must be a poptorch.VariableRetrievalMode, got {variable_retrieval_mode!r}",
        )
        if self.__dict__.get(_COMPILED) or any(source.used for source in self.__dict__.get(_SOURCES, ())):
            raise createPoptorchError("replicaGrouping() must be called before the model is compiled.")
        grouping = replica_groups.ReplicaGrouping(comm_group_type, shards, variable_retrieval_mode)
        replica_groups.set_grouping(self, grouping)

    def __repr__(self) -> str:
        return repr(torch.nn.Parameter(_plain(self), self.requires_grad))

    def __deepcopy__(self, memo: dict) -> torch.nn.Parameter:
        return memo.setdefault(id(self), torch.nn.Parameter(_plain(self), self.requires_grad))

    def __reduce_ex__(self, protocol: int) -> Any:
        return torch.nn.Parameter(self.detach(), self.requires_grad).__reduce_ex__(protocol)


class _HostedParameter(_GroupedParameter):
    """A parameter whose reading brings the weights back from the device."""

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _read(func, args, kwargs)


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
        return self.detach().__reduce_ex__(protocol)


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
                    _sync(_sources(item))
    with torch._C.DisableTorchFunctionSubclass():
        return func(*args, **(kwargs or {}))


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """An ordinary tensor with a copy of the (synchronised) values."""
    return tensor.detach().clone()


def wrap(
    model: torch.nn.Module,
    duplicate: torch.nn.Module,
    source: WeightSource,
    destroy: Callable[[], None],
    loaded: Callable[[], None],
    gather: Callable[[], bool],
) -> None:
    """Give `model` and its executor_copy the class PoptorchModel, whose methods read through `source`.

    model.destroy() calls `destroy`; model.load_state_dict() calls `loaded` when the host has the new weights;
    model.state_dict() calls `gather` before it reads, which says whether other processes have parts of the model.
    Raises RuntimeError if it has that class already.
    """
    user_class = type(model)
    if getattr(user_class, "_poptorch_user_class", None) is not None or model in _set_aside:
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
            copies = collecting.copies_on_disk if gather() else _clones
            return _copied(super().state_dict(*args, **kwargs), copies)

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
    model.__class__ = duplicate.__class__ = PoptorchModel
    host(model, source)


def _clones(owned: dict[Any, Owned]) -> dict[Any, torch.Tensor]:
    return {key: each.tensor.clone() for key, each in owned.items()}


def _copied(state: Any, copies: Callable[[dict[Any, Owned]], dict[Any, torch.Tensor]]) -> Any:
    """`state` with copies in the place of its tensors: later training does not change them. Ties are kept."""
    keys = {
        name: (value.data_ptr(), value.shape, value.stride(), value.dtype)
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and not value.is_meta
    }
    found = copies({key: Owned.whole(state[name]) for name, key in keys.items()})
    for name, key in keys.items():
        state[name] = found[key]
    return state


def host(model: torch.nn.Module, source: WeightSource) -> None:
    """From now on reading a parameter or a buffer of `model` brings the weights back from the device of `source`."""
    for tensor in _tensors(model):
        before = _sources(tensor) if type(tensor) in _HOSTED else ()
        if source not in before:
            _set_sources(tensor, (*before, source))


def _set_sources(tensor: torch.Tensor, sources: tuple[WeightSource, ...]) -> None:
    if type(tensor) in _HOSTED and not sources:
        del tensor.__dict__[_SOURCES]
        tensor.__class__ = _HOSTED[type(tensor)]
    elif sources:
        kind = torch.nn.Parameter if type(tensor) is _GroupedParameter else type(tensor)
        hosted = next((hosted for hosted, usual in _HOSTED.items() if kind in (hosted, usual)), None)
        if hosted is not None:
            tensor.__class__ = hosted
            tensor.__dict__[_SOURCES] = sources


def _unhost(model: torch.nn.Module, source: WeightSource) -> None:
    """`source` is none of the sources of `model`'s tensors any more."""
    for tensor in _tensors(model):
        if type(tensor) in _HOSTED:
            _set_sources(tensor, tuple(other for other in _sources(tensor) if other is not source))


def make_groupable(model: torch.nn.Module) -> None:
    """The parameters of an inference executor's model have replicaGrouping() from now on."""
    for parameter in model.parameters():
        if type(parameter) is torch.nn.Parameter:
            parameter.__class__ = _GroupedParameter


def fix_grouping(model: torch.nn.Module) -> None:
    """An inference executor was compiled: how replicas are grouped may not change any more."""
    for parameter in model.parameters():
        if type(parameter) is _GroupedParameter:
            parameter.__dict__[_COMPILED] = True


def ungroup(model: torch.nn.Module) -> None:
    """The parameters are what they were before make_groupable(), unless a training executor has them."""
    for parameter in model.parameters():
        if type(parameter) is _GroupedParameter:
            parameter.__dict__.pop(_COMPILED, None)
            replica_groups.forget(parameter)
            parameter.__class__ = torch.nn.Parameter


_set_aside: weakref.WeakKeyDictionary[torch.nn.Module, type] = weakref.WeakKeyDictionary()  # model -> its wrapped class


def unwrapModelIfNecessary(model: torch.nn.Module) -> None:
    """Give a wrapped model its own class and ordinary parameters and buffers, with the newest weights, for a while.

    Its training executor stays, and rewrapModelIfNecessary undoes this. Without effect on a model that is not wrapped.
    """
    wrapped = type(model)
    if getattr(wrapped, "_poptorch_user_class", None) is not None:
        wrapped._poptorch_source.sync()
        _unhost(model, wrapped._poptorch_source)
        model.__class__ = wrapped._poptorch_user_class
        _set_aside[model] = wrapped


def rewrapModelIfNecessary(model: torch.nn.Module) -> None:
    """Wrap a model again, with the parameters and buffers that it has now, for the executor it was wrapped for.

    Without effect on a model that unwrapModelIfNecessary did not unwrap.
    """
    wrapped = _set_aside.pop(model, None)
    if wrapped is not None:
        model.__class__ = wrapped
        host(model, wrapped._poptorch_source)


def unwrap(model: torch.nn.Module, duplicate: torch.nn.Module) -> None:
    """Both are what they were before `wrap`."""
    rewrapModelIfNecessary(model)
    _unhost(model, type(model)._poptorch_source)
    for parameter in model.parameters():
        replica_groups.forget(parameter)
        parameter.__dict__.pop(_COMPILED, None)
    model.__class__ = duplicate.__class__ = type(model)._poptorch_user_class


@contextlib.contextmanager
def own_class(duplicate: torch.nn.Module) -> Iterator[None]:
    """Inside this context an executor_copy has the user's class, by whose name messages call it."""
    wrapped = duplicate.__class__
    duplicate.__class__ = getattr(wrapped, "_poptorch_user_class", wrapped)
    try:
        yield
    finally:
        duplicate.__class__ = wrapped


@contextlib.contextmanager
def plain(model: torch.nn.Module) -> Iterator[None]:
    """Inside this context `model`'s tensors are ordinary ones, for tracing and copying."""
    hosted = [(tensor, _sources(tensor)) for tensor in _tensors(model) if type(tensor) in _HOSTED]
    grouped = [tensor for tensor in model.parameters() if type(tensor) is _GroupedParameter]
    source = source_of(model)
    with source.suspended() if source is not None else contextlib.nullcontext():
        for tensor, _ in hosted:
            _set_sources(tensor, ())
        for tensor in grouped:
            tensor.__class__ = torch.nn.Parameter
        try:
            yield
        finally:
            for tensor in grouped:
                tensor.__class__ = _GroupedParameter
            for tensor, sources in hosted:
                _set_sources(tensor, sources)


def executor_copy(model: torch.nn.Module) -> torch.nn.Module:
    """The shallow copy that an executor works on: submodules and parameters shared, top-level attributes its own."""
    duplicate = object.__new__(getattr(type(model), "_poptorch_user_class", None) or type(model))
    duplicate.__dict__.update(vars(model))
    return duplicate
