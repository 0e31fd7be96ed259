"""Dropout, and the residual sum after it, in one pass over memory and without a mask that is kept.

The kernel of native/ draws the mask again in the backward pass. Where it is not built, or for other types than float32,
torch's dropout serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from . import native
from .computed_again import remember_sum


def residual_dropout(
    x: torch.Tensor, residual: torch.Tensor | None, dropout: float, keys: Sequence[int] | None = None
) -> torch.Tensor:
    """residual + dropout(x), or dropout(x) where `residual` is None: tensors of one shape and type.

    Or x is of 16 bits and `residual` of float32: a sum that a layer norm is not to keep (computed_again.py).

    `dropout` is the probability of dropping, above 0 and below 1; the random numbers, or the key that they follow from,
    are drawn from the CPU's generator. `keys` are drawn already, one for each of as many equal parts; only for what
    native.serves().
    """
    again = residual is not None and x.dtype != residual.dtype
    if native.serves(residual if again else x):
        keys = (native.new_key(),) if keys is None else tuple(keys)
        made = _ResidualDropout.apply(x, residual, dropout, keys)
        return remember_sum(made, partial(_dropout_add, dropout=dropout, keys=keys), x, residual) if again else made
    dropped = F.dropout(x.to(residual.dtype) if again else x, dropout)
    return dropped if residual is None else dropped + residual


def _dropout_add(x: torch.Tensor, residual: torch.Tensor | None, dropout: float, keys: Sequence[int]) -> torch.Tensor:
    other = None if residual is None else residual.contiguous()
    return native.dropout_add(x.float().contiguous(), other, dropout, keys)


class _ResidualDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, dropout, keys):
        ctx.dropout, ctx.keys, ctx.type = dropout, keys, x.dtype
        return _dropout_add(x, residual, dropout, keys)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = _dropout_add(grad, None, ctx.dropout, ctx.keys).to(ctx.type)
        return grad_x, grad if ctx.needs_input_grad[1] else None, None, None
