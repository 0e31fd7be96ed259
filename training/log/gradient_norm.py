"""The gradient's norm, from what a PopTorch program can see of it: the optimizer's state.

The device gives no gradient to the program. But it gives the optimizer's first moment, m = b m + (1 - b) g in every
update, and from the moments before and after n updates follows

    (m_n - b^n m_0) / (1 - b^n) = sum of (1 - b) b^(n-i) g_i / (1 - b^n),

a weighted mean of their gradients; with one update it is the gradient itself. Reading the state copies it to the host,
so that this is asked for by a flag.
"""

from __future__ import annotations

import math
from typing import Any

import torch

_FIRST_MOMENT, _LOSS_SCALE = "Accl1___", "lossScaling_FLOAT"


class GradientNorm:
    """Reads the state of an optimizer of poptorch.optim with a first moment (Adam, AdamW, LAMB).

    Args:
        updates_a_call: weight updates of one call, --device-iterations.

    A resumed run goes on from the moments that the optimizer was given; a new one starts with none.
    """

    def __init__(self, optimizer: Any, updates_a_call: int) -> None:
        self._optimizer, self._updates_a_call = optimizer, updates_a_call
        self._beta = float(optimizer.param_groups[0]["betas"][0])
        self._moments: dict[str, torch.Tensor] = {}
        state = optimizer.state_dict().get("ipu_state") or {}
        self._moments.update({name: value.clone() for name, value in state.items() if name.startswith(_FIRST_MOMENT)})

    def read(self, calls: int) -> tuple[float, float]:
        """The norm of the mean gradient of the `calls` since the last time, without loss scale; and the loss scale.

        Of several processes all must ask; the first, which has the values, gets the norm, the others 0.
        """
        state = self._optimizer.state_dict()
        decay = self._beta ** (calls * self._updates_a_call)
        total, earlier, self._moments = 0.0, self._moments, {}
        for name, moment in state["ipu_state"].items():
            if not name.startswith(_FIRST_MOMENT) or moment.is_meta:
                continue
            before = earlier.get(name)
            difference = moment.double() if before is None else moment.double() - decay * before.double()
            total += float(difference.square().sum())
            self._moments[name] = moment.clone()
        return math.sqrt(total) / (1.0 - decay), float(state["ipu_param"][_LOSS_SCALE])


def loss_scale(optimizer: Any) -> float:
    """The loss scale at hand of an optimizer of poptorch.optim. Copies its whole state to the host."""
    on_device = optimizer.state_dict().get("ipu_param") or {}  # none before the first call
    return float(on_device.get(_LOSS_SCALE, optimizer.loss_scaling))
