"""Weights of half programs on a CPU in two parts of 16 bits: what products read, and what is missing to float32.

A weight in float32 and its copy rounded to bfloat16 take six bytes an element. The copy, and how far from it the weight
is in units of its last place, take four: Kalamkar et al., Optimizing Deep Learning Recommender Systems' Training on CPU
Cluster Architectures, 2020, which calls it Split-SGD-BF16; the upper part is not rounded there. The distance is at most
2^15, which 16 bits have room for with one exception: 2^15 itself, of a weight halfway between two numbers of bfloat16
that is rounded down. Such a weight is kept one unit in its last place nearer to 0, and the copy is what rounding gives.

A device's weight stays the tensor that autograd and the optimizer know it by, but has no memory of its own: read by
anybody who does not ask here it is NaN, and torch refuses to write to it.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_LARGEST_DISTANCE = (1 << 15) - 1
_FEWEST = 1 << 16  # elements


@dataclasses.dataclass(frozen=True)
class SplitWeight:
    """The parts of a weight, contiguous and of its shape.

    Attributes:
        rounded: bfloat16, the weight rounded to nearest, ties to even.
        remainder: int16, the bits of the weight, as a whole number, less those of `rounded` with 16 zeros after them.
    """

    rounded: Tensor
    remainder: Tensor

    def whole(self) -> Tensor:
        """The weight in float32: a new tensor."""
        bits = self.rounded.view(torch.int16).int().mul_(1 << 16).add_(self.remainder)
        return bits.view(torch.float32)

    def assign(self, weight: Tensor) -> None:
        """Hold `weight`, of any type, from now on."""
        weight = weight.to(torch.float32)
        self.rounded.copy_(weight)
        distance = weight.view(torch.int32) - self.rounded.view(torch.int16).int().mul_(1 << 16)
        self.remainder.copy_(distance.clamp_(-_LARGEST_DISTANCE - 1, _LARGEST_DISTANCE))  # NaN stays NaN


# Device weight -> its parts. An entry goes with its weight.
_SPLIT: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def is_worth(shape: torch.Size) -> bool:
    """Whether a weight of this shape is worth two tensors: large matrices are."""
    return len(shape) == 2 and shape.numel() >= _FEWEST


def empty(shape: torch.Size) -> Tensor:
    """A weight (N, K) in two parts of undefined contents."""
    row = torch.full((shape[1],), torch.nan, dtype=torch.float32, device="cpu")
    # not by expand(): it would be a view of something
    weight = torch.empty(0, dtype=torch.float32, device="cpu").set_(row.untyped_storage(), 0, shape, (0, 1))
    parts = (torch.empty(shape, dtype=dtype, device="cpu") for dtype in (torch.bfloat16, torch.int16))
    _SPLIT[weight] = SplitWeight(*parts)
    return weight


def parts_of(weight: Tensor) -> SplitWeight | None:
    """Those of `weight`, None if it is one float32 tensor, or of another type."""
    return _SPLIT.get(weight)


def whole(weight: Tensor) -> Tensor:
    """The numbers of a device's weight, without gradients: itself, or a new tensor if it is in two parts."""
    parts = parts_of(weight)
    return weight.detach() if parts is None else parts.whole()


@torch.no_grad()
def assign(weight: Tensor, source: Tensor) -> None:
    """weight = source, of any type and device."""
    parts = parts_of(weight)
    if parts is None:
        weight.copy_(source)
    else:
        parts.assign(source.cpu())


def rounded(view: Tensor, weight: Tensor) -> Tensor | None:
    """The copy of `weight` that products read, as `view` lies: `weight` itself or its transpose. None if it has none.

    Raises ValueError for another view, of which nobody knows what part it is.
    """
    parts = parts_of(weight)
    if parts is None:
        return None
    if view.shape == weight.shape and view.stride() == weight.stride():
        return parts.rounded
    if view.shape == weight.t().shape and view.stride() == weight.t().stride():
        return parts.rounded.t()
    raise ValueError(f"a weight in two parts is read as a view of shape {tuple(view.shape)}, strides {view.stride()}")
