"""Optimizers with their parameter groups, and learning-rate schedules."""

from __future__ import annotations

import math
import warnings
from typing import Any, Sequence

import poptorch
import torch
from torch import nn

BETAS = (0.9, 0.999)  # PopTorch's


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices with weight decay; biases and layer norms, which have one dimension, without."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def make_optimizer(
    name: str,
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    loss_scaling: float,
    eps: float = 1e-6,
    betas: Sequence[float] = BETAS,
    gradient_clipping: float | None = None,
) -> torch.optim.Optimizer:
    """One of AdamW, Adam, LAMB and LAMBNoBiasCorrection; without further arguments with the reference's numerics.

    Gradients and the first moment are kept in half, the second moment in float32: squares of gradients leave half's
    range first.

    Args:
        betas: of the two moments. PopTorch makes those that it is given variables of the compiled program, and its
            own, which are the default, constants.
        gradient_clipping: the largest norm that the gradient of all parameters together may have, without the loss
            scale; None: any. LAMB has no such thing in PopTorch.
    """
    groups = parameter_groups(model, weight_decay)
    common: dict[str, Any] = dict(
        lr=learning_rate,
        eps=eps,
        loss_scaling=loss_scaling,
        accum_type=torch.float16,
        first_order_momentum_accum_type=torch.float16,
        second_order_momentum_accum_type=torch.float32,
    )
    if tuple(betas) != BETAS:
        common["betas"] = tuple(betas)
    if gradient_clipping is not None:
        common["max_grad_norm"] = gradient_clipping
    if name == "AdamW":
        # The SDK accepts bias_correction=False here and corrects all the same.
        return poptorch.optim.AdamW(groups, bias_correction=False, **common)
    if name == "Adam":
        return poptorch.optim.Adam(groups, **common)
    return poptorch.optim.LAMB(groups, bias_correction=name == "LAMB", **common)


def schedule_factor(kind: str, step: int, warmup_steps: int, decay_steps: int, floor: float = 0.0) -> float:
    """The learning rate of call `step` (from 0) as a share of the highest one.

    Linear rise over `warmup_steps`, then "constant", "linear" to `floor` at `decay_steps`, or "cosine" to it there.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if kind == "constant":
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1, decay_steps - warmup_steps))
    left = 1.0 - progress if kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return floor + (1.0 - floor) * left


def warmup_length(fraction: float, steps: int | None, decay_steps: int) -> int:
    """Calls of warm-up: `steps` if given, else that fraction of the decay steps."""
    return steps if steps is not None else int(fraction * decay_steps + 1e-9)  # 0.29 x 100 is 28.999…


def last_rate(min_learning_rate: float) -> str:
    """The rate at the end of a falling schedule, and what that means for a run that goes on there."""
    return f"{min_learning_rate:g}" if min_learning_rate else "0, which changes no weight"


def course_note(kind: str, decay_steps: int, calls: int, min_learning_rate: float) -> str | None:
    """What a run of `calls` says if its schedule ends before it does: one that was extended, or was given a length."""
    if kind == "constant" or calls <= decay_steps:
        return None
    rate = last_rate(min_learning_rate)
    return f"the learning rate ends its {kind} course at step {decay_steps:,}; after that it stays {rate}"


class _Factor:
    """`schedule_factor` with its arguments, in a form that torch's scheduler can be saved with."""

    def __init__(self, kind: str, warmup_steps: int, decay_steps: int, floor: float) -> None:
        self.kind, self.warmup_steps, self.decay_steps, self.floor = kind, warmup_steps, decay_steps, floor

    def __call__(self, step: int) -> float:
        return schedule_factor(self.kind, step, self.warmup_steps, self.decay_steps, self.floor)


def make_schedule(
    optimizer: torch.optim.Optimizer, kind: str, warmup_steps: int, decay_steps: int, floor: float = 0.0
) -> torch.optim.lr_scheduler.LambdaLR:
    """torch's scheduler for this schedule; the program steps it once a call and then calls setOptimizer."""
    # The device runs the optimizer, so its step() is never called here. torch takes that for a mistake.
    warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler\.step\(\)` before `optimizer\.step", UserWarning)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, _Factor(kind, warmup_steps, decay_steps, floor))
