"""Stochastic rounding of float32 to float16.

A half weight has 11 significant bits: an update below 2^-12 of the weight is lost whenever the sum is rounded to
nearest. Rounding up with a probability equal to the distance from the lower neighbour keeps the update on average
(Gupta et al., Deep Learning with Limited Numerical Precision, 2015).
"""

from __future__ import annotations

import torch

HALF_MAX = 65504.0
_EXPONENT_MASK = 0x7F800000  # of a float32's bits
_MANTISSA_BITS = 23
_HALF_MANTISSA_BITS = 10
_SMALLEST_SPACING = (127 - 24) << _MANTISSA_BITS  # the bits of 2^-24, the distance between float16 subnormals


@torch.no_grad()
def stochastic_round(source: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Round float32 to float16 without bias: each value becomes one of its two float16 neighbours.

    Values that float16 holds exactly stay, subnormals and signed zeros included, as do infinities and NaN. Finite
    values beyond float16's largest (65504) have no upper neighbour and are rounded to nearest.

    Args:
        source: float32, any shape; not changed.
        generator: where the random numbers come from (on the device of `source`); None for the device's default one.
    Returns:
        float16, the shape of `source`. Needs about four temporaries of its size.
    Raises:
        ValueError: `source` is not float32.
    """
    if source.dtype != torch.float32:
        raise ValueError(f"stochastic rounding takes float32, not {source.dtype}; convert the tensor first")
    # The distance of float16 numbers around x, 2^(E-10) with E the exponent of x, built from the exponent's bits.
    bits = source.contiguous().view(torch.int32) & _EXPONENT_MASK
    bits.sub_(_HALF_MANTISSA_BITS << _MANTISSA_BITS).clamp_(min=_SMALLEST_SPACING)
    spacing = bits.view(torch.float32)
    # Everything up to the comparison is exact: spacing is a power of two, |x| / spacing is below 2^11.
    fraction = source.abs().div_(spacing)
    steps = fraction.floor()
    fraction.sub_(steps)
    up = torch.rand(source.shape, generator=generator, dtype=source.dtype, device=source.device) < fraction
    rounded = steps.add_(up).mul_(spacing)
    rounded = torch.where(source.abs() > HALF_MAX, source, rounded.copysign_(source))
    return rounded.to(torch.float16)
