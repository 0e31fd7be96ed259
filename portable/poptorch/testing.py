"""poptorch.testing: comparing what models return."""

from __future__ import annotations

from typing import Any

import torch

from .checks import require
from .structure import Structure


def allclose(ref: Any, other: Any) -> bool:
    """Whether two tensors, or structures of them, have the same shape and, nearly, the same values.

    Raises AssertionError if the structures are of different types or lengths.
    """
    left, right = Structure.of(ref)[0], Structure.of(other)[0]
    require(type(ref) is type(other), f"allclose compares {type(ref)} with {type(other)}")
    require(len(left) == len(right), f"allclose compares {len(left)} tensors with {len(right)}")
    return all(a.shape == b.shape and torch.allclose(a, b, equal_nan=True) for a, b in zip(left, right, strict=True))
