"""Nested arguments and outputs: taking the tensors out of a structure and putting others in their places.

A structure is any nesting of tuples, lists, dicts, named tuples, dataclasses, classes with a registered
`poptorch.ICustomArgParser`, `None`, constants and tensors (spec sections 1 and 3).
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .poptorch_core import createPoptorchError

_ITEMS = (list, tuple, set, frozenset, collections.deque)


class ICustomArgParser:
    """How a class of the user's is taken apart into tensors and put together again."""

    def yieldTensors(self, struct: Any) -> Iterator[torch.Tensor]:
        """Yield every tensor of `struct`, always in the same order."""
        raise NotImplementedError(f"{type(self).__name__} must define yieldTensors.")

    def reconstruct(self, original_structure: Any, tensor_iterator: Iterator[torch.Tensor]) -> Any:
        """Return a structure like `original_structure` with its tensors taken from `tensor_iterator`."""
        raise NotImplementedError(f"{type(self).__name__} must define reconstruct.")


_PARSERS: dict[type, ICustomArgParser] = {}


def registerCustomArgParser(arg_data_type: type, arg_parser: ICustomArgParser) -> None:
    """Let arguments and outputs of class `arg_data_type` be taken apart by `arg_parser`."""
    if not isinstance(arg_parser, ICustomArgParser):
        raise createPoptorchError(f"{type(arg_parser)} is not a poptorch.ICustomArgParser.")
    _PARSERS[arg_data_type] = arg_parser


class _GeometricParser(ICustomArgParser):
    """Of torch_geometric's Data and Batch: the tensors in the order of their keys."""

    def yieldTensors(self, struct: Any) -> Iterator[torch.Tensor]:
        for key in sorted(struct.keys() if callable(struct.keys) else struct.keys):
            if isinstance(struct[key], torch.Tensor):
                yield struct[key]

    def reconstruct(self, original_structure: Any, tensor_iterator: Iterator[torch.Tensor]) -> Any:
        rebuilt = copy.copy(original_structure)
        for key in sorted(rebuilt.keys() if callable(rebuilt.keys) else rebuilt.keys):
            if isinstance(original_structure[key], (torch.Tensor, _Slot)):
                rebuilt[key] = next(tensor_iterator)
        return rebuilt


def registerGeometricCustomArgParsers() -> None:
    """Let arguments be torch_geometric's Data and Batch. ImportError if that library is not installed."""
    from torch_geometric.data import Batch, Data

    for kind in (Data, Batch):
        registerCustomArgParser(kind, _GeometricParser())


def _parser(value: Any) -> ICustomArgParser | None:
    return next((_PARSERS[kind] for kind in type(value).__mro__ if kind in _PARSERS), None)


def map_leaves(value: Any, function: Callable[[Any], Any], apart: bool = False) -> Any:
    """Rebuild `value` with every leaf replaced by `function(leaf)`, in a fixed order.

    With `apart` an object of a class with a parser is not put together again yet.
    """
    if isinstance(value, _Parsed):
        return value.parser.reconstruct(value.original, iter([function(item) for item in value.items]))
    if isinstance(value, _Attributes):
        return _with_attributes(value.original, map_leaves(value.values, function, apart))
    parser = _parser(value)
    if parser is not None:
        items = [function(tensor) for tensor in parser.yieldTensors(value)]
        return _Parsed(parser, value, items) if apart else parser.reconstruct(value, iter(items))
    if isinstance(value, (list, tuple)):
        return like_sequence(value, [map_leaves(item, function, apart) for item in value])
    if isinstance(value, dict):
        items = {key: map_leaves(item, function, apart) for key, item in value.items()}
        return items if type(value) is dict else _like_dict(value, items)
    if dataclasses.is_dataclass(value) and not isinstance(value, (type, _Slot)):
        values = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        mapped = map_leaves(values, function, apart)
        return _Attributes(value, mapped) if apart else _with_attributes(value, mapped)
    return function(value)


def _with_attributes(original: Any, values: dict[str, Any]) -> Any:
    """A copy of an object with other values in these attributes; itself if they are the same."""
    if all(getattr(original, name) is value for name, value in values.items()):
        return original
    rebuilt = copy.copy(original)
    for name, value in values.items():
        object.__setattr__(rebuilt, name, value)  # dataclasses may be frozen
    return rebuilt


def parsed_tensors(value: Any) -> list[torch.Tensor] | None:
    """The tensors of an object whose class has a parser, or None."""
    parser = _parser(value)
    return None if parser is None else list(parser.yieldTensors(value))


def _like_dict(value: dict, items: dict) -> dict:
    if dataclasses.is_dataclass(value):  # Hugging Face's ModelOutput: a dict that is a dataclass as well
        return type(value)(**items)
    rebuilt = copy_dict(value)
    rebuilt.update(items)
    return rebuilt


def copy_dict(value: dict) -> dict:
    """A copy of the same class, whose constructor may take anything; dict.copy() gives a plain one."""
    try:
        rebuilt = value.copy()
        if type(rebuilt) is type(value):
            return rebuilt
    except TypeError:  # collections' classes call the constructor
        pass
    rebuilt = type(value).__new__(type(value))
    attributes = getattr(value, "__dict__", None)
    if attributes is value:  # `self.__dict__ = self`: its items are its attributes
        rebuilt.__dict__ = rebuilt
    elif attributes:
        rebuilt.__dict__.update(attributes)
    dict.update(rebuilt, value)
    return rebuilt


def like_sequence(value: list | tuple, items: list[Any]) -> Any:
    """A list or tuple of the class of `value` with these items."""
    kind = type(value)
    if hasattr(value, "_fields"):
        return kind(*items)
    try:
        return kind(items)
    except TypeError:  # its constructor takes something else
        rebuilt = list.__new__(kind) if isinstance(value, list) else tuple.__new__(kind, items)
        if hasattr(value, "__dict__"):
            rebuilt.__dict__.update(vars(value))
        if isinstance(value, list):
            rebuilt[:] = items
        return rebuilt


def tensors_inside(value: Any, seen: set[int] | None = None) -> Iterator[torch.Tensor]:
    """The tensors in `value`: itself, items, and those in attributes of what is no module."""
    seen = set() if seen is None else seen
    if isinstance(value, torch.Tensor):
        yield value
        return
    if id(value) in seen or isinstance(value, (torch.nn.Module, type, types.FunctionType, types.ModuleType)):
        return
    seen.add(id(value))
    items = value.values() if isinstance(value, dict) else value if isinstance(value, _ITEMS) else ()
    for item in (*items, *getattr(value, "__dict__", {}).values()):
        yield from tensors_inside(item, seen)


def _has_tensors(value: Any) -> bool:
    return next(tensors_inside(value), None) is not None


@dataclasses.dataclass(frozen=True)
class Structure:
    """A structure without its tensors."""

    template: Any

    @classmethod
    def of(
        cls,
        value: Any,
        wanted: Callable[[torch.Tensor], bool] = lambda tensor: True,
        objects: bool = False,
        other: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
    ) -> tuple[list[torch.Tensor], Structure]:
        """The tensors of `value` that are `wanted`, and what is left when they are taken out.

        Tensors that are not wanted stay, as what `other` makes of them. With `objects` those in the attributes of any
        object are taken, too (a cache that a model returns, say).
        """
        leaves: list[torch.Tensor] = []
        opened: set[int] = set()  # objects being taken apart: one may refer to itself

        def take(leaf: Any) -> Any:
            if isinstance(leaf, torch.Tensor):
                if not wanted(leaf):
                    return other(leaf)
                leaves.append(leaf)
                return _Slot(len(leaves) - 1)
            if objects and id(leaf) not in opened and _has_tensors(leaf):
                opened.add(id(leaf))
                apart = _Attributes(leaf, map_leaves(dict(vars(leaf)), take, apart=True))
                opened.discard(id(leaf))
                return apart
            return leaf

        return leaves, cls(map_leaves(value, take, apart=True))

    def fill(self, leaves: list[Any]) -> Any:
        """The structure again, with `leaves` in the tensors' places, and copies of tensors that were left in it."""

        def filled(leaf: Any) -> Any:
            if isinstance(leaf, _Slot):
                return leaves[leaf.index]
            return leaf.clone() if isinstance(leaf, torch.Tensor) else leaf

        return map_leaves(self.template, filled)

    def constants(self) -> list[Any]:
        """What is in the structure besides the tensors that were taken out, None left aside."""
        found: list[Any] = []
        map_leaves(self.template, lambda leaf: leaf if leaf is None or isinstance(leaf, _Slot) else found.append(leaf))
        return found


@dataclasses.dataclass(frozen=True)
class _Slot:
    index: int


@dataclasses.dataclass(frozen=True)
class _Parsed:
    """An object taken apart by its parser; `items` are what its tensors were replaced by."""

    parser: ICustomArgParser
    original: Any
    items: list[Any]


@dataclasses.dataclass(frozen=True)
class _Attributes:
    """An object taken apart into attributes; `values` are what these were replaced by."""

    original: Any
    values: dict[str, Any]
