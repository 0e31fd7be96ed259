"""Dropout, and the residual sum after it, in one pass over memory and without a mask that is kept.

The kernel of native/ draws the mask again in the backward pass. Where it is not built, or for other types than float32,
torch's dropout serves.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from . import native


def residual_dropout(
    x: torch.Tensor, residual: torch.Tensor | None, dropout: float, keys: Sequence[int] | None = None
) -> torch.Tensor:
    """residual + dropout(x), or dropout(x) where `residual` is None: tensors of one shape and type.

    `dropout` is the probability of dropping, above 0 and below 1; the random numbers, or the key that they follow from,
    are drawn from the CPU's generator. `keys` are drawn already, one for each of as many equal parts; only for what
    native.serves().
    """
    if native.serves(x):
        return _ResidualDropout.apply(x, residual, dropout, (native.new_key(),) if keys is None else tuple(keys))
    dropped = F.dropout(x, dropout)
    return dropped if residual is None else dropped + residual


class _ResidualDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, dropout, keys):
        ctx.dropout, ctx.keys = dropout, keys
        other = None if residual is None else residual.contiguous()
        return native.dropout_add(x.contiguous(), other, dropout, keys)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        grad_x = native.dropout_add(grad.contiguous(), None, ctx.dropout, ctx.keys) if ctx.needs_input_grad[0] else None
        return grad_x, grad if ctx.needs_input_grad[1] else None, None, None
