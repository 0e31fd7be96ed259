"""Automatic loss scaling: a factor that follows the size of half gradients (spec section 6)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

_HALF_MAX = torch.finfo(torch.float16).max


@dataclasses.dataclass
class AutomaticLossScaling:
    """The factor on the optimizer's loss scaling, and the rule that changes it after every `period` steps.

    A share of gradient elements above `bin_edge` x 65504 that exceeds `threshold` halves the factor, otherwise it
    doubles. The defaults and the names of the settings are PopART's (automaticLossScalingSettings.*).
    """

    bin_edge: float = 0.125
    threshold: float = 1e-7
    period: int = 1
    factor: float = 1.0
    _steps: int = 0

    @torch.no_grad()
    def observe(
        self,
        gradients: list[torch.Tensor],
        counted: list[bool],
        add: Callable[[list[torch.Tensor]], list[torch.Tensor]],
    ) -> float:
        """Count one step's half gradients, still scaled; returns what the factor is to be multiplied by: 0.5, 1 or 2.

        Gradients beyond the range of half are brought back to its ends, as the device's arithmetic does. `add` gives
        sums over all processes of a replica from those over the gradients that are `counted` here.
        """
        device = gradients[0].device if gradients else None
        large, elements = torch.zeros((2,), dtype=torch.float64, device=device)
        for gradient, count in zip(gradients, counted, strict=True):
            torch.nan_to_num_(gradient, nan=_HALF_MAX, posinf=_HALF_MAX, neginf=-_HALF_MAX)
            if count:
                large += (gradient.abs() > self.bin_edge * _HALF_MAX).sum()
                elements += gradient.numel()
        large, elements = (each.item() for each in add([large, elements]))
        if not elements:
            return 1.0  # nothing is half: there is nothing to keep in range
        self._steps += 1
        if self._steps % self.period:
            return 1.0
        return 0.5 if large / elements > self.threshold else 2.0
