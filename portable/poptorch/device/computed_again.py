"""Tensors that are cheaper to compute a second time than to keep for the backward pass.

GELU and layer norms keep what they were given. A product that reads what they made would keep that, too: instead it
computes it again, by the same kernel, from what is kept anyway. Of a block of GPT-2 a third less is kept.

What a layer norm was given may be a sum of what an earlier one keeps, in float32, and of something in 16 bits: that is
kept in its place, and is half as large (engine/passes/half_products.py finds these).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

Operands = tuple[torch.Tensor | None, ...]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a tensor is made: function(*operands), seen in `shape`."""

    function: Callable[..., torch.Tensor]
    shape: torch.Size

    def make(self, operands: Operands) -> torch.Tensor:
        """The tensor again, bit for bit, from the same operands. There are no gradients."""
        with torch.no_grad():
            return self.function(*operands).view(self.shape)


# What was made -> its function and operands. An entry goes with the tensor.
_RECIPES: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
# The same of sums that nobody is to keep.
_SUMS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def remember(made: torch.Tensor, function: Callable[..., torch.Tensor], *operands: torch.Tensor | None) -> torch.Tensor:
    """`made`, contiguous, which function(*operands) makes again; remembered if there will be a backward pass."""
    if made.requires_grad:
        _RECIPES[made] = function, operands
    return made


def recipe_of(tensor: torch.Tensor) -> tuple[Recipe, Operands] | None:
    """How `tensor`, which may be another one in another shape, was made, and from what; None where nobody remembers.

    Nor where it has been written to since. Who keeps the operands by save_for_backward() is told if these have been.
    """
    base = tensor if tensor._base is None else tensor._base
    found = _RECIPES.get(base)
    if found is None or base._version or tensor.numel() != base.numel() or not tensor.is_contiguous():
        return None
    function, operands = found
    return Recipe(function, tensor.shape), operands


def layer_norm(
    x: torch.Tensor,
    shape: Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> torch.Tensor:
    """aten.layer_norm, remembered: (..., *shape) -> the same, contiguous."""

    def made(x, weight, bias):
        return torch.layer_norm(x, shape, weight, bias, eps, cudnn_enable)

    found = _SUMS.get(x)
    if found is None or x._version:
        return remember(made(x, weight, bias), made, x, weight, bias)
    add, summands = found

    def made_of_sum(x, residual, weight, bias):
        return made(add(x, residual), weight, bias)

    return remember(_LayerNorm.apply(x, weight, bias, tuple(shape), eps, found), made_of_sum, *summands, weight, bias)


class _LayerNorm(torch.autograd.Function):
    """Of a sum, `found` in _SUMS, which is added up again in the backward pass."""

    @staticmethod
    def forward(ctx, x, weight, bias, shape, eps, found):
        ctx.add, summands = found
        ctx.shape, ctx.norm_shape = x.shape, shape
        out, mean, deviation = torch.native_layer_norm(x, shape, weight, bias, eps)
        ctx.save_for_backward(*(each.detach() for each in summands), mean, deviation, weight, bias)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, residual, mean, deviation, weight, bias = ctx.saved_tensors
        needed = [*ctx.needs_input_grad[:3]]
        x = ctx.add(x, residual)
        norm = torch.ops.aten.native_layer_norm_backward
        grads = norm(grad.contiguous(), x, ctx.norm_shape, mean, deviation, weight, bias, needed)
        return *grads, None, None, None


def residual_sum(x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """residual + x in float32, of 16 bits and float32 and one shape: a sum that a layer norm is not to keep."""
    return remember_sum(_sum(x, residual), _sum, x, residual)


def remember_sum(
    made: torch.Tensor, function: Callable[..., torch.Tensor], x: torch.Tensor, residual: torch.Tensor
) -> torch.Tensor:
    """`made`, which function(x, residual) makes again; remembered if there will be a backward pass."""
    if made.requires_grad:
        _SUMS[made] = function, (x, residual)
    return made


def _sum(x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    return x.to(residual.dtype) + residual
