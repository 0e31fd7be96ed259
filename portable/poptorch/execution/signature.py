"""The arguments of a call: binding, taking apart, and checking against those the program was compiled for.

Spec sections 1 (validation) and 2 (splitting). A call is bound to the parameters of `forward`; its tensors become a
flat list, everything else is a constant from the first call on.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import inspect
import types
import weakref
from collections.abc import Callable
from typing import Any

import torch

from ..checks import require
from ..poptorch_core import createPoptorchError
from ..structure import Structure, copy_dict, like_sequence, map_leaves, parsed_tensors, tensors_inside

_CONSTANTS = (type(None), bool, int, float, str)
# Of these another object is another value, though their classes leave it to `is` when two are equal.
_ONE_OF_A_KIND = (enum.Enum, type, torch.dtype, torch.layout, torch.memory_format)
_HINT = " This error occurred because the inputs passed at runtime don't match the inputs used to compile the model."


def _positional(signature: inspect.Signature) -> list[inspect.Parameter]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [parameter for parameter in signature.parameters.values() if parameter.kind in kinds]


class BoundCall:
    """One call's arguments, bound to the names of `forward`'s parameters.

    `leaves` are the tensors in order; `rebuild(leaves)` gives (args, kwargs) with other tensors in their places.
    """

    def __init__(self, model: torch.nn.Module, args: tuple, kwargs: dict[str, Any], compiled: BoundCall | None = None):
        """Dicts get the order of their keys from the call that was `compiled`, if there is one."""
        self._signature = _signature(model)
        self._by_position, self._by_name = len(args), frozenset(kwargs)
        self.arguments = _bind(self._signature, args, kwargs)
        if compiled is not None:
            self.arguments = _in_order_of(compiled.arguments, self.arguments)
        self.leaves, self._structure = Structure.of(self.arguments)
        self._fewest = self._count_needed()

    def rebuild(self, leaves: list[torch.Tensor]) -> tuple[tuple, dict[str, Any]]:
        """The call again with other tensors: what came by position or by name does so, for hooks and __call__().

        Defaults are left out as they were, but for those with tensors, which are inputs like others.
        """
        arguments = self._structure.fill(leaves)
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for position, (name, parameter) in enumerate(self._signature.parameters.items()):
            value = arguments[name]
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                args += value
            elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
                kwargs.update(value)
            elif parameter.kind is inspect.Parameter.POSITIONAL_ONLY or (
                parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and position < self._by_position
            ):
                args.append(value)
            elif name in self._by_name or Structure.of(self.arguments[name])[0]:
                kwargs[name] = value
        return tuple(args), kwargs

    def tensor_names(self) -> list[str]:
        """A name for each tensor: that of the parameter, with a number behind it if there are several."""
        names = []
        for name, value in self.arguments.items():
            count = len(Structure.of(value)[0])
            names += [name] if count == 1 else [f"{name}.{position}" for position in range(count)]
        return names

    def _count_needed(self) -> int:
        """How many arguments come before those at the end that have their defaults, constants that cannot change."""
        count = len(self.arguments)
        for name, value in reversed(self.arguments.items()):
            if value is not self._signature.parameters[name].default or not isinstance(value, _CONSTANTS):
                break
            count -= 1
        return count

    def forget_values(self) -> None:
        """Keep what a later call is compared with, and the tensors' shapes, but not their memory."""
        self.arguments = map_leaves(self.arguments, _compared_with)
        self.leaves = []

    def example(self) -> tuple[tuple, dict[str, Any]]:
        """A call like this one, with zeros in its tensors."""
        return self.rebuild(Structure.of(self.arguments)[0])

    def same_tensors(
        self,
        model: torch.nn.Module,
        args: tuple,
        kwargs: dict[str, Any],
        multiplier: int,
        micro_batch: list[torch.Size],
    ) -> list[torch.Tensor] | None:
        """The tensors of a call with nothing but tensors, by position and like those of this one. Otherwise None.

        What most calls are, in a fraction of the time that a BoundCall and check_against() take. What is left out has
        its default, and had it in this call.
        """
        if kwargs or _signature(model) is not self._signature:
            return None
        if len(args) != len(micro_batch) or len(args) < self._fewest:
            return None
        for got, expected, shape in zip(args, self.arguments.values(), micro_batch, strict=False):
            if type(got) is not torch.Tensor or type(expected) is not torch.Tensor or got.dtype != expected.dtype:
                return None
            if got.shape != _whole(shape, multiplier):
                return None
        return list(args)

    def check_against(self, compiled: BoundCall, multiplier: int, micro_batch: list[torch.Size]) -> None:
        """Raise poptorch.Error if this call is not one the program was compiled for.

        `micro_batch` holds the shape of each tensor in the compiled program; `multiplier` is the number of
        micro-batches that a call feeds.
        """
        for name, expected in compiled.arguments.items():
            if name not in self.arguments:
                raise createPoptorchError(f"Mandatory parameter {name} missing.{_HINT}")
            _compare(name, expected, self.arguments[name])
        for name in self.arguments:
            if name not in compiled.arguments:
                raise createPoptorchError(f"Unexpected argument {name}.{_HINT}")
        for index, (leaf, shape) in enumerate(zip(self.leaves, micro_batch, strict=True)):
            expected = _whole(shape, multiplier)
            if leaf.shape != expected:
                raise _mismatch("Shape", _paths(self.arguments)[index], expected, leaf.shape)


def _whole(micro_batch: torch.Size, multiplier: int) -> torch.Size:
    """The shape of so many micro-batches one behind the other."""
    return torch.Size((micro_batch[0] * multiplier, *micro_batch[1:])) if len(micro_batch) else micro_batch


def _compared_with(leaf: Any) -> Any:
    """What a later call's leaf is compared with: a copy of what the program may have changed by then."""
    if isinstance(leaf, torch.Tensor):
        return _hollow(leaf)
    return copy.copy(leaf) if isinstance(leaf, (set, bytearray)) or hasattr(leaf, "__array__") else leaf


def _hollow(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same shape and type in the memory of one element."""
    return tensor.new_zeros(()).expand(tensor.shape)


def _in_order_of(expected: Any, got: Any) -> Any:
    """`got` with the keys of its dicts in the order that they have in `expected`, where both have the same keys."""
    if isinstance(expected, dict) and isinstance(got, dict):
        if expected.keys() != got.keys():
            return got
        values = {key: _in_order_of(value, got[key]) for key, value in expected.items()}
        if list(expected) == list(got) and all(values[key] is got[key] for key in got):
            return got
        return values if type(got) is dict else _refilled(got, values)
    if isinstance(expected, (list, tuple)) and isinstance(got, (list, tuple)) and len(expected) == len(got):
        items = [_in_order_of(left, right) for left, right in zip(expected, got, strict=True)]
        return got if all(item is old for item, old in zip(items, got, strict=True)) else like_sequence(got, items)
    return got


def _refilled(mapping: dict, values: dict) -> dict:
    """A dict of the same class with these values, in this order."""
    if dataclasses.is_dataclass(mapping):  # its fields have an order of their own
        return mapping
    rebuilt = copy_dict(mapping)
    rebuilt.clear()
    rebuilt.update(values)
    return rebuilt


# forward() of a class -> what it takes besides self. Finding that out takes as long as the rest of a call's binding.
_SIGNATURES: weakref.WeakKeyDictionary[Callable, inspect.Signature] = weakref.WeakKeyDictionary()


def _signature(model: torch.nn.Module) -> inspect.Signature:
    """What a call of the model takes."""
    if "forward" in vars(model):
        return inspect.signature(model.forward)
    forward = type(model).forward
    try:
        found = _SIGNATURES.get(forward)
    except TypeError:  # a callable of a class of its own
        return _without_self(forward)
    if found is None:
        of_object = isinstance(inspect.getattr_static(type(model), "forward"), (classmethod, staticmethod))
        found = inspect.signature(forward) if of_object else _without_self(forward)
        _SIGNATURES[forward] = found
    return found


def _without_self(forward: Callable) -> inspect.Signature:
    signature = inspect.signature(forward)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def _bind(signature: inspect.Signature, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """{parameter name: value}, defaults filled in, with the errors of the contract."""
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        positional = _positional(signature)
        variadic = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in signature.parameters.values())
        require(
            variadic or len(args) <= len(positional),
            f"Too many arguments provided: expected {[p.name for p in positional]} ({len(positional)}) but got "
            f"{len(args)}",
        )
        for parameter in positional[len(args) :]:
            if parameter.default is inspect.Parameter.empty and parameter.name not in kwargs:
                raise createPoptorchError(f"Mandatory parameter {parameter.name} missing.") from error
        raise createPoptorchError(f"The arguments do not fit forward(): {error}.") from error
    bound.apply_defaults()
    return dict(bound.arguments)


def _compare(path: str, expected: Any, got: Any) -> None:
    """Types, lengths, keys, dtypes and constants; shapes are the caller's."""
    if isinstance(expected, torch.Tensor):
        if not isinstance(got, torch.Tensor):
            raise _mismatch("Type", path, "a torch.Tensor", f"{type(got)}")
        if expected.dtype != got.dtype:
            raise _mismatch("Data type", path, expected.dtype, got.dtype)
        return
    if type(expected) is not type(got):
        raise _mismatch("Type", path, type(expected), type(got))
    tensors = parsed_tensors(expected)
    if tensors is not None:
        _compare(f"{path}'s tensors", tensors, parsed_tensors(got))
    elif isinstance(expected, (list, tuple)):
        if len(expected) != len(got):
            raise _mismatch("Length", path, len(expected), len(got))
        for index, (left, right) in enumerate(zip(expected, got, strict=True)):
            _compare(f"{path}[{index}]", left, right)
    elif isinstance(expected, dict):
        missing, unexpected = set(expected) - set(got), set(got) - set(expected)
        if missing or unexpected:
            missing, unexpected = sorted(map(str, missing)), sorted(map(str, unexpected))
            told = [f"Missing arguments: {', '.join(missing)}"] * bool(missing)
            told += [f"Unexpected arguments: {', '.join(unexpected)}"] * bool(unexpected)
            names = f"{path}: Unexpected: {unexpected}, Missing: {missing}. {'. '.join(told)}"
            raise _mismatch("Keys", names, sorted(map(str, expected)), sorted(map(str, got)))
        for key, value in expected.items():
            _compare(f"{path}[{key!r}]", value, got[key])
    elif dataclasses.is_dataclass(expected):
        for field in dataclasses.fields(expected):
            _compare(f"{path}.{field.name}", getattr(expected, field.name), getattr(got, field.name))
    elif not _same_value(expected, got):
        raise _mismatch("Value", path, expected, got)


def _same_value(expected: Any, got: Any) -> bool:
    """Whether a constant is what it was: NaN is; so is an object of a class that does not say when two are equal.

    Raises poptorch.Error for an object with other tensors inside.
    """
    if expected is got:
        return True
    if isinstance(expected, _ONE_OF_A_KIND):
        return False
    if isinstance(expected, types.FunctionType):  # one defined anew in each call is the same
        return expected.__code__ == got.__code__
    before, now = list(tensors_inside(expected)), list(tensors_inside(got))
    if len(before) != len(now) or not all(map(_same_tensor, before, now)):
        raise createPoptorchError(
            f"An argument of {type(expected)} has other tensors than in the call that the model was compiled for, and "
            "they are constants there: pass them by themselves or in tuples, lists and dicts, or register a "
            f"poptorch.ICustomArgParser for the class.{_HINT}"
        )
    if before or type(expected).__eq__ is object.__eq__:
        return True
    try:
        equal = expected == got
        if not isinstance(equal, bool):  # NumPy's scalars and arrays
            return expected.shape == got.shape and bool((equal | ((expected != expected) & (got != got))).all())
        return equal or bool(expected != expected and got != got)
    except Exception:  # of no value of one's own, or of arrays of different shapes
        return False


def _same_tensor(expected: torch.Tensor, got: torch.Tensor) -> bool:
    return expected is got or (expected.dtype == got.dtype and torch.equal(expected, got))


def _paths(arguments: dict[str, Any]) -> list[str]:
    """Where each tensor of the arguments is: `x`, `x[1]`, `x['mask']`."""
    found: list[str] = []

    def walk(path: str, value: Any) -> None:
        tensors = parsed_tensors(value)
        if isinstance(value, torch.Tensor):
            found.append(path)
        elif tensors is not None:
            found.extend(f"{path}'s tensors[{index}]" for index in range(len(tensors)))
        elif isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                walk(f"{path}[{index}]", item)
        elif isinstance(value, dict):
            for key, item in value.items():
                walk(f"{path}[{key!r}]", item)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            for field in dataclasses.fields(value):
                walk(f"{path}.{field.name}", getattr(value, field.name))

    for name, value in arguments.items():
        walk(name, value)
    return found


def _mismatch(what: str, path: str, expected: Any, got: Any) -> Exception:
    return createPoptorchError(f"{what} mismatch: expected {expected} but got {got} for {path}.{_HINT}")


def split_sizes(leaves: list[torch.Tensor], multiplier: int, explanation: str) -> list[torch.Size]:
    """The shape of each tensor's micro-batch.

    `multiplier` micro-batches lie one behind the other in dim 0; a 0-d tensor counts as size 1.
    Raises AssertionError "Invalid batch dimension: …" if they do not come out even, poptorch.Error for a tensor that is
    sparse, quantized or without values.
    """
    shapes = []
    for leaf in leaves:
        if leaf.layout is not torch.strided or leaf.is_quantized or leaf.is_meta:
            kind = "quantized" if leaf.is_quantized else "meta" if leaf.is_meta else f"{leaf.layout}"
            raise createPoptorchError(f"Unsupported input: a {kind} tensor. Inputs must be dense tensors with values.")
        size = leaf.shape[0] if leaf.dim() else 1
        require(
            size % multiplier == 0,
            f"Invalid batch dimension: In the input {leaf.shape}, the batch dimension ({size}) must be a multiple of "
            f"{explanation} = {multiplier}",
        )
        shapes.append(torch.Size((size // multiplier, *leaf.shape[1:])) if leaf.dim() else leaf.shape)
    return shapes
