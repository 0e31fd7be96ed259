"""The numbers that one parameter is updated with, by kind of optimizer (spec section 7)."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class SGDValues:
    """What SGD updates a parameter with."""

    lr: float
    momentum: float
    dampening: float
    weight_decay: float
    nesterov: bool
    velocity_scaling: float


@dataclasses.dataclass(frozen=True)
class AdamValues:
    """What Adam and AdamW update a parameter with; `decoupled` is AdamW's weight decay, otherwise L2."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    decoupled: bool


@dataclasses.dataclass(frozen=True)
class LAMBValues:
    """What LAMB updates a parameter with; `max_weight_norm` 0 switches the trust ratio off."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    max_weight_norm: float


@dataclasses.dataclass(frozen=True)
class RMSpropValues:
    """What RMSprop updates a parameter with."""

    lr: float
    alpha: float
    eps: float
    weight_decay: float
    momentum: float
    centered: bool


@dataclasses.dataclass(frozen=True)
class RuleValues:
    """What a registered rule updates a parameter with: lr, and the group's other entries by name and in order."""

    lr: float
    numbers: tuple[tuple[str, Any], ...]

    @property
    def group(self) -> dict[str, Any]:
        """All of them by name."""
        return {"lr": self.lr, **dict(self.numbers)}


Values = SGDValues | AdamValues | LAMBValues | RMSpropValues | RuleValues
VALUES = {"SGD": SGDValues, "Adam": AdamValues, "AdamW": AdamValues, "RMSprop": RMSpropValues, "LAMB": LAMBValues}
