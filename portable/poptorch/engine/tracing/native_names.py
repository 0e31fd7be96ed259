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
# A name for what is computed until the matching pop_name_scope(), as poptorch.NameScope: it changes no number.
_LIBRARY.define("push_name_scope(str name) -> ()")
_LIBRARY.define("pop_name_scope() -> ()")
_LIBRARY.impl("push_name_scope", lambda name: None, "CompositeImplicitAutograd")
_LIBRARY.impl("pop_name_scope", lambda: None, "CompositeImplicitAutograd")
# Of a traced graph these two are no part: their nodes are to be dropped.
NAME_SCOPES = frozenset({torch.ops.poptorch.push_name_scope.default, torch.ops.poptorch.pop_name_scope.default})
