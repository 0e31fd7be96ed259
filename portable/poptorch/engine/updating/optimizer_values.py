"""The numbers that one parameter is updated with, by kind of optimizer (spec section 7)."""

from __future__ import annotations

import dataclasses


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


Values = SGDValues | AdamValues | LAMBValues | RMSpropValues
VALUES = {"SGD": SGDValues, "Adam": AdamValues, "AdamW": AdamValues, "RMSprop": RMSpropValues, "LAMB": LAMBValues}
