"""GELU together with the bias before it: one pass over memory forward, and one backward for both gradients.

torch makes the bias a part of the product before, the two halves of GELU passes of their own, in which it computes tanh
to the last digit and loses those of erf in the lower tail, and the bias's gradient a third one. Where the kernel of
native/ is not built, or for other types than float32 and bfloat16, these serve.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from . import native
from .computed_again import remember


def bias_gelu(x: torch.Tensor, bias: torch.Tensor | None, approximate: str) -> torch.Tensor:
    """F.gelu(x + bias, approximate=approximate), "none" or "tanh": (..., N) and (N,), or no bias, -> (..., N)."""
    if native.serves(x, narrow=True) and (bias is None or native.serves(bias)):
        by_tanh = approximate == "tanh"
        return remember(_Gelu.apply(x, bias, by_tanh), partial(_forward, by_tanh=by_tanh), x, bias)
    return F.gelu(x if bias is None else x + bias, approximate=approximate)


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bias, by_tanh):
        ctx.save_for_backward(x, bias)
        ctx.by_tanh = by_tanh
        return _forward(x, bias, by_tanh)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, bias = map(_contiguous, ctx.saved_tensors)
        return *native.gelu_backward(grad.contiguous(), x, bias, ctx.needs_input_grad[1], ctx.by_tanh), None


def _forward(x: torch.Tensor, bias: torch.Tensor | None, by_tanh: bool) -> torch.Tensor:
    return native.gelu_forward(_contiguous(x), _contiguous(bias), by_tanh)


def _contiguous(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.contiguous()
