"""Hyper-parameters as tensors under PopART's names, for optimizer states that are saved and loaded (spec section 7)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch

from .hyperparameters import Settings
from .optimizer_values import Values

POPART_NAMES = {
    "lr": "learningRate",
    "beta1": "beta1",
    "beta2": "beta2",
    "eps": "eps",
    "weight_decay": "weightDecay",
    "momentum": "momentum",
    "dampening": "dampening",
    "velocity_scaling": "velocityScaling",
    "alpha": "alpha",
    "max_weight_norm": "maxWeightNorm",
}


def to_tensors(settings: Settings) -> dict[str, torch.Tensor]:
    """Hyper-parameters under PopART's names, 0-d float64: `learningRate___specific___<param>`, …, `lossScaling_FLOAT`.

    SGD adds the two factors its update really uses, scaledLearningRate0 = lr / loss_scaling and
    weightDecayScaleFactor0 = 1 - lr * weight_decay. Parameters with the same values share their tensors, which keeps a
    checkpoint small.
    """
    found = {"lossScaling_FLOAT": torch.tensor(settings.loss_scaling, dtype=torch.float64)}
    shared: dict[Values, dict[str, torch.Tensor]] = {}
    for name, values in settings.values.items():
        if values not in shared:
            numbers = {POPART_NAMES[f]: getattr(values, f) for f in _numbers(values)}
            if settings.kind == "SGD":
                numbers["scaledLearningRate0"] = values.lr / settings.loss_scaling
                numbers["weightDecayScaleFactor0"] = 1.0 - values.lr * values.weight_decay
            shared[values] = {key: torch.tensor(number, dtype=torch.float64) for key, number in numbers.items()}
        found.update({f"{key}___specific___{name}": tensor for key, tensor in shared[values].items()})
    return found


def from_tensors(
    settings: Settings, tensors: Mapping[str, torch.Tensor], *, constants: bool
) -> tuple[Settings, list[str]]:
    """`settings` with the numbers that to_tensors() put into `tensors`, and the keys that were not there.

    With `constants` False only variable attributes are taken over, as on an IPU, where the others are compiled in.
    """
    missing: list[str] = []
    values = {}
    for name, old in settings.values.items():
        new = {}
        for field in _numbers(old):
            key = f"{POPART_NAMES[field]}___specific___{name}"
            if key not in tensors:
                missing.append(key)
            elif constants or field not in settings.constants[name]:
                new[field] = float(tensors[key])
        values[name] = dataclasses.replace(old, **new)
    loss_scaling = settings.loss_scaling
    if "lossScaling_FLOAT" not in tensors:
        missing.append("lossScaling_FLOAT")
    elif constants or not settings.loss_scaling_constant:
        loss_scaling = float(tensors["lossScaling_FLOAT"])
    return dataclasses.replace(settings, values=values, loss_scaling=loss_scaling), missing


def _numbers(values: Values) -> list[str]:
    return [field.name for field in dataclasses.fields(values) if field.name in POPART_NAMES]
