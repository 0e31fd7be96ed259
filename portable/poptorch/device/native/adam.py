"""Adam's update of many parameters in one call. What it computes is said in adam.h."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterable, Sequence

import torch

from ..split_weights import SplitWeight
from . import available, library

_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # as Type in kernels.h


class _Piece(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("weight", "gradient", "first", "second", "rounded", "remainder")),
        ("count", ctypes.c_int64),
        ("rounded_type", ctypes.c_int32),
    ]


_NUMBERS = ("divisor", "added_decay", "kept", "weight1", "beta2", "weight2", "eps", "rate")


class _Adam(ctypes.Structure):
    _fields_ = [
        ("pieces", ctypes.c_void_p),
        ("number", ctypes.c_int64),
        ("types", ctypes.c_int32 * 4),
        *((name, ctypes.c_float) for name in _NUMBERS),
    ]


def serves(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether the kernel takes such tensors: dense ones on the CPU, of float32, float16 or bfloat16."""
    fit = (t.device.type == "cpu" and t.dtype in _TYPES and t.is_contiguous() for t in tensors)
    return available() and all(fit)


def adam(
    weights: Sequence[torch.Tensor | SplitWeight],
    gradients: Sequence[torch.Tensor],
    first: Sequence[torch.Tensor],
    second: Sequence[torch.Tensor],
    rounded: Sequence[torch.Tensor | None],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    step: int,
    divisor: float,
) -> None:
    """One step of Adam, or (`decoupled`) AdamW, in place, as torch's fused ones with the arithmetic in float32.

    Torch is not told of what is written: see torch.autograd.graph.increment_version.

    Args:
        weights, gradients, first, second: of as many elements each at the same place of the lists, one type a list, as
            serves() says; `first` and `second` are the moments. A weight in two parts is one of float32.
        rounded: gets the new weight, too, in its own type and in the order of the weight's memory; or None, as for a
            weight in two parts.
        step: the number of this step, from 1.
        divisor: what the gradients are divided by first.
    """
    if not weights:
        return
    pieces = (_Piece * len(weights))()
    for piece, weight, gradient, m, v, copy in zip(pieces, weights, gradients, first, second, rounded, strict=True):
        piece.gradient, piece.first, piece.second = (t.data_ptr() for t in (gradient, m, v))
        piece.count = gradient.numel()
        if isinstance(weight, SplitWeight):
            piece.remainder, copy = weight.remainder.data_ptr(), weight.rounded
        else:
            piece.weight = weight.data_ptr()
        if copy is not None:
            piece.rounded, piece.rounded_type = copy.data_ptr(), _TYPES[copy.dtype]
    call = _Adam(ctypes.addressof(pieces), len(weights))
    types = [next((w.dtype for w in weights if isinstance(w, torch.Tensor)), torch.float32)]
    types += (tensors[0].dtype for tensors in (gradients, first, second))
    call.types = tuple(_TYPES[dtype] for dtype in types)
    call.divisor = divisor
    call.added_decay, call.kept = (0.0, 1.0 - lr * weight_decay) if decoupled else (weight_decay, 1.0)
    call.weight1, call.beta2, call.weight2 = 1.0 - beta1, beta2, 1.0 - beta2
    # The corrections of the moments' bias are in two numbers: an element has one square root and one division.
    root = math.sqrt(1.0 - beta2**step)
    call.eps, call.rate = eps * root, lr * root / (1.0 - beta1**step)
    library().poptorch_adam(ctypes.byref(call), torch.get_num_threads())
