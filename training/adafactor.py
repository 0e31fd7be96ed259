"""Adafactor: the second moment of a matrix kept as sums over its rows and columns (Shazeer & Stern 2018).

Without a first moment and with the learning rate of a schedule. Of the two versions in use one multiplies the rate by
the parameter's size, the other does not.
"""

from __future__ import annotations

from typing import Any, Mapping, Sequence

import torch
from torch import Tensor

from training.rule_optimizer import RuleOptimizer, StateForm, root_mean

DECAY = -0.8  # the second moment of step t weighs the new square by t^DECAY: algorithm 8 of the paper
CLIP = 1.0  # the largest root mean square of an update before the learning rate
EPS_SQUARE = 1e-30  # added to squared gradients
EPS_SIZE = 1e-3  # the least size of a parameter


class AdafactorRule:
    """g: gradient; t: the step, from 1; b = 1 - t^-0.8; RMS: root mean square.

    R = b R + (1-b) mean_columns(g^2 + 1e-30);  C = b C + (1-b) mean_rows(g^2 + 1e-30);  V = R C / mean(R)
    u = g / sqrt(V);  u /= max(1, RMS(u));  w -= lr [max(1e-3, RMS(w))] u;  decoupled decay: w -= lr wd w

    A vector has V itself. The factor in brackets is there with the group's `scale_parameter`; with it this is
    torch.optim.Adafactor, but for its bound 1 / sqrt(t) on the learning rate, which a schedule's rates are far below.
    """

    block = None  # means over whole rows and columns

    def states(self, shape: torch.Size, group: Mapping[str, Any]) -> dict[str, StateForm]:
        """R and C of a matrix (of the last two dimensions), V of anything else, in float32."""
        if len(shape) < 2:
            return {"exp_avg_sq": (shape, torch.float32)}
        return {
            "exp_avg_sq_row": (torch.Size(shape[:-1]), torch.float32),
            "exp_avg_sq_col": (torch.Size([*shape[:-2], shape[-1]]), torch.float32),
        }

    def update(
        self,
        weight: Tensor,
        gradient: Tensor,
        states: Mapping[str, Tensor],
        group: Mapping[str, Any],
        step: int,
        norm: Tensor,
    ) -> None:
        """One update in place."""
        newest, lr = step**DECAY, group["lr"]
        if group["scale_parameter"]:
            size = root_mean(weight).clamp(min=EPS_SIZE)
        else:
            size = torch.ones((), device=weight.device)
        if group["weight_decay"]:
            weight.mul_(1.0 - lr * group["weight_decay"])
        squares = gradient.square().add_(EPS_SQUARE)
        if gradient.dim() < 2:
            direction = states["exp_avg_sq"].lerp_(squares, newest).rsqrt()
        else:
            row = states["exp_avg_sq_row"].lerp_(squares.mean(dim=-1), newest)
            column = states["exp_avg_sq_col"].lerp_(squares.mean(dim=-2), newest)
            direction = torch.mul((row / row.mean(dim=-1, keepdim=True)).rsqrt_()[..., None],
                                  column.rsqrt()[..., None, :], out=squares)  # fmt: skip
        direction.mul_(gradient)
        factor = lr * size / (root_mean(direction) / CLIP).clamp(min=1.0)
        weight.sub_(direction.mul_(factor))


class Adafactor(RuleOptimizer):
    """Adafactor with factored second moments.

    Args:
        groups, loss_scaling, max_grad_norm: as RuleOptimizer.
        lr, weight_decay: of groups that do not say otherwise.
        scale_parameter: multiply the learning rate by the size of the parameter, as torch.optim.Adafactor.
    """

    portable_update_rule = AdafactorRule()

    def __init__(
        self,
        groups: Sequence[Mapping[str, Any]],
        lr: float,
        weight_decay: float = 0.0,
        scale_parameter: bool = True,
        loss_scaling: float = 1.0,
        max_grad_norm: float | None = None,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "scale_parameter": scale_parameter}
        super().__init__(groups, defaults, loss_scaling, max_grad_norm)
