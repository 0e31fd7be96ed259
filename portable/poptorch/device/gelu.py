"""GELU together with the bias before it: one pass over memory forward, and one backward for both gradients.

torch makes the bias a part of the product before, the two halves of GELU passes of their own, in which it computes tanh
to the last digit and loses those of erf in the lower tail, and the bias's gradient a third one. Where the kernel of
native/ is not built, or for other types than float32 and bfloat16, these serve.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from . import native


def bias_gelu(x: torch.Tensor, bias: torch.Tensor | None, approximate: str) -> torch.Tensor:
    """F.gelu(x + bias, approximate=approximate), "none" or "tanh": (..., N) and (N,), or no bias, -> (..., N)."""
    if native.serves(x, narrow=True) and (bias is None or native.serves(bias)):
        return _Gelu.apply(x, bias, approximate == "tanh")
    return F.gelu(x if bias is None else x + bias, approximate=approximate)


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bias, by_tanh):
        x, bias = x.contiguous(), None if bias is None else bias.contiguous()
        ctx.save_for_backward(x, bias)
        ctx.by_tanh = by_tanh
        return native.gelu_forward(x, bias, by_tanh)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, bias = ctx.saved_tensors
        return *native.gelu_backward(grad.contiguous(), x, bias, ctx.needs_input_grad[1], ctx.by_tanh), None
