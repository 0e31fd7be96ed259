"""Dropout, and the residual sum after it, in one pass over memory and without a mask that is kept.

The kernel of native/ draws the mask again in the backward pass. Where it is not built, or for other types than float32,
torch's dropout serves.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from . import native


def residual_dropout(x: torch.Tensor, residual: torch.Tensor | None, dropout: float) -> torch.Tensor:
    """residual + dropout(x), or dropout(x) where `residual` is None: tensors of one shape and type.

    `dropout` is the probability of dropping, above 0 and below 1; the random numbers, or the key that they follow from,
    are drawn from the CPU's generator.
    """
    if x.device.type == "cpu" and x.dtype == torch.float32 and native.available():
        return _ResidualDropout.apply(x, residual, dropout)
    dropped = F.dropout(x, dropout)
    return dropped if residual is None else dropped + residual


class _ResidualDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, dropout):
        ctx.dropout, ctx.key = dropout, native.new_key()
        other = None if residual is None else residual.contiguous()
        return native.dropout_add(x.contiguous(), other, dropout, ctx.key)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        grad_x = native.dropout_add(grad.contiguous(), None, ctx.dropout, ctx.key) if ctx.needs_input_grad[0] else None
        return grad_x, grad if ctx.needs_input_grad[1] else None, None
