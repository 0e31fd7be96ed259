"""Nested arguments and outputs: taking the tensors out of a structure and putting others in their places.

A structure is any nesting of tuples, lists, dicts, named tuples, classes with a registered
`poptorch.ICustomArgParser`, `None`, constants and tensors (spec sections 1 and 3).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .poptorch_core import createPoptorchError


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


def _parser(value: Any) -> ICustomArgParser | None:
    return next((_PARSERS[kind] for kind in type(value).__mro__ if kind in _PARSERS), None)


def map_leaves(value: Any, function: Callable[[Any], Any]) -> Any:
    """Rebuild `value` with every leaf replaced by `function(leaf)`, in a fixed order."""
    parser = _parser(value)
    if parser is not None:
        return parser.reconstruct(value, iter([function(tensor) for tensor in parser.yieldTensors(value)]))
    if isinstance(value, tuple):
        items = [map_leaves(item, function) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, list):
        return type(value)(map_leaves(item, function) for item in value)
    if isinstance(value, dict):
        items = {key: map_leaves(item, function) for key, item in value.items()}
        return items if type(value) is dict else _like_dict(value, items)
    return function(value)


def _like_dict(value: dict, items: dict) -> dict:
    if dataclasses.is_dataclass(value):  # Hugging Face's ModelOutput: a dict that is a dataclass as well
        return type(value)(**items)
    rebuilt = value.copy()
    rebuilt.update(items)
    return rebuilt


@dataclasses.dataclass(frozen=True)
class Structure:
    """A structure without its tensors."""

    template: Any

    @classmethod
    def of(
        cls, value: Any, wanted: Callable[[torch.Tensor], bool] = lambda tensor: True
    ) -> tuple[list[torch.Tensor], Structure]:
        """The tensors of `value` that are `wanted`, and what is left when they are taken out."""
        leaves: list[torch.Tensor] = []

        def take(leaf: Any) -> Any:
            if isinstance(leaf, torch.Tensor) and wanted(leaf):
                leaves.append(leaf)
                return _Slot(len(leaves) - 1)
            return leaf

        return leaves, cls(map_leaves(value, take))

    def fill(self, leaves: list[Any]) -> Any:
        """The structure again, with `leaves` in the tensors' places."""
        return map_leaves(self.template, lambda leaf: leaves[leaf.index] if isinstance(leaf, _Slot) else leaf)


@dataclasses.dataclass(frozen=True)
class _Slot:
    index: int
