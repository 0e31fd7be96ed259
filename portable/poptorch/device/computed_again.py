"""Tensors that are cheaper to compute a second time than to keep for the backward pass.

GELU and layer norms keep what they were given. A product that reads what they made would keep that, too: instead it
computes it again, by the same kernel, from what is kept anyway. Of a block of GPT-2 a third less is kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
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

    return remember(made(x, weight, bias), made, x, weight, bias)
