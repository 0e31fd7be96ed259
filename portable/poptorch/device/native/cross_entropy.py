"""Cross-entropy of rows of logits, and its gradient in their place. What is computed is said in kernels.h."""

from __future__ import annotations

import ctypes

import torch

from . import library


class _CrossEntropy(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("logits", "bias", "target", "losses", "best", "factors", "gradient")),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "stride", "gradient_stride")),
        ("narrow", ctypes.c_bool),
    ]


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
            in the memory of `logits`.
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
    stride, narrow = (0, False) if gradient is None else (gradient.stride(0), gradient.dtype == torch.bfloat16)
    call = _CrossEntropy(*pointers, rows, columns, logits.stride(0), stride, narrow)
    library().poptorch_cross_entropy(ctypes.byref(call), torch.get_num_threads())
    return found
