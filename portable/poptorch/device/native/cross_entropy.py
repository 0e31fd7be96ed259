"""Cross-entropy of rows of logits, and its gradient in their place. What is computed is said in kernels.h."""

from __future__ import annotations

import ctypes

import torch

from . import library


class _CrossEntropy(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("logits", "bias", "target", "losses", "best", "factors", "gradient")),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "stride", "part", "gradient_stride", "part_stride")),
        ("narrow", ctypes.c_bool),
    ]


PART_STEP = 64  # as kPartStep in kernels.h


def losses(logits: torch.Tensor, bias: torch.Tensor | None, target: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
    """(N,) float32 losses of (N, V) float32 logits, whose rows are contiguous.

    Args:
        bias: contiguous (V,) float32, which is added to each row first; or None.
        target: (N,) int64.
        best: (N,) int64: gets the place of each row's first largest logit.
    Raises:
        IndexError: a target is not one of the V.
    """
    return _call(logits, bias, target, best, None, None)


def differentiate(
    logits: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    best: torch.Tensor,
    narrow: bool,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """losses(), and the gradients of the logits up to a factor for each row.

    Args:
        out: (N, V), whose rows are contiguous, of bfloat16 (`narrow`) or of float32: gets the gradients; None for one
            in the memory of `logits`. Or in parts of P columns each, (ceil(V / P), N, P): P is a multiple of PART_STEP,
            and what the last part has beyond V stays as it is.
    Returns:
        The losses (N,), `out`, and (N,) float32 factors: a row of the second times its factor is softmax minus one-hot.
    """
    factors = torch.empty(len(logits), dtype=torch.float32, device="cpu")
    if out is None:
        out = logits.view(torch.bfloat16)[:, : logits.shape[1]] if narrow else logits
    return _call(logits, bias, target, best, factors, out), out, factors


def _call(
    logits: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    best: torch.Tensor,
    factors: torch.Tensor | None,
    gradient: torch.Tensor | None,
) -> torch.Tensor:
    rows, columns = logits.shape
    if rows and not 0 <= int(target.min()) <= int(target.max()) < columns:
        wrong = target[(target < 0) | (target >= columns)]
        raise IndexError(f"Target {int(wrong[0])} is out of bounds: there are {columns} classes.")
    found = torch.empty(rows, dtype=torch.float32, device="cpu")
    tensors = (logits, bias, target.contiguous(), found, best, factors, gradient)
    pointers = (None if each is None else each.data_ptr() for each in tensors)
    narrow = gradient is not None and gradient.dtype == torch.bfloat16
    part, strides = columns, (0, 0)
    if gradient is not None:
        part, strides = gradient.shape[-1], (gradient.stride(-2), gradient.stride(0))
    call = _CrossEntropy(*pointers, rows, columns, logits.stride(0), part, *strides, narrow)
    library().poptorch_cross_entropy(ctypes.byref(call), torch.get_num_threads())
    return found
