"""Operators of PopTorch's native library that programs call as `torch.ops.poptorch.<name>`."""

from __future__ import annotations

import torch

from ...poptorch_core import createPoptorchError

_LIBRARY = torch.library.Library("poptorch", "FRAGMENT")
# PopART's names of the types that the device has. It has no 64-bit ones: those mean their 32-bit neighbours.
_TYPES = {
    "BOOL": torch.bool,
    "DOUBLE": torch.float32,
    "FLOAT": torch.float32,
    "FLOAT16": torch.float16,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int32,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
}


def _internal_cast(tensor: torch.Tensor, dtype: str) -> torch.Tensor:
    """`tensor` in the type that PopART calls `dtype`. Raises poptorch.Error for another name."""
    if dtype not in _TYPES:
        raise createPoptorchError(f"internal_cast: {dtype!r} is not one of {', '.join(_TYPES)}.")
    return tensor.to(_TYPES[dtype])


_LIBRARY.define("internal_cast(Tensor tensor, str dtype) -> Tensor")
_LIBRARY.impl("internal_cast", _internal_cast, "CompositeImplicitAutograd")
# Names and compiler hints for what is computed from here on, as poptorch.NameScope and poptorch.Attribute: no number
# changes, and of a traced graph they are no part.
_HINTS = (
    "push_name_scope(str name)",
    "pop_name_scope()",
    "set_attribute(str attribute, str key, str value)",
    "clear_attribute(str attribute, str key)",
)


def _no_effect(*args: str) -> None:
    """A hint."""


for _hint in _HINTS:
    _LIBRARY.define(f"{_hint} -> ()")
    _LIBRARY.impl(_hint.partition("(")[0], _no_effect, "CompositeImplicitAutograd")
IDLE = frozenset(getattr(torch.ops.poptorch, hint.partition("(")[0]).default for hint in _HINTS)
