"""Adam as PopTorch does not have it: each parameter's gradient clipped by itself, and moments in 8 bits."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

import torch
from torch import Tensor

from training.block_quantization import dequantize, quantize
from training.optimizer_memory import BLOCK, LEAST_QUANTIZED
from training.rule_optimizer import RuleOptimizer, StateForm


class AdamRule:
    """Adam (weight decay added to the gradient) or AdamW (decoupled) with bias correction.

    g *= min(1, max_tensor_norm / |g|);  m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2
    w -= lr (m / (1-b1^t) / (sqrt(v / (1-b2^t)) + eps) [+ wd w])

    |g| is the norm of this one parameter's gradient, which Keras calls clipnorm; the group's `max_tensor_norm` None
    leaves it as it is. With the group's `bits` 8 both moments of large parameters are kept in 8 bits.

    Args:
        decoupled: AdamW.
        first: the type of a first moment that is not quantized; the second one is float32.
        quantizes: whether there are groups with `bits` 8.
    """

    def __init__(self, decoupled: bool, first: torch.dtype, quantizes: bool) -> None:
        self.block = BLOCK if quantizes else 1
        self._decoupled, self._first, self._quantizes = decoupled, first, quantizes

    def states(self, shape: torch.Size, group: Mapping[str, Any]) -> dict[str, StateForm]:
        """Both moments; quantized ones as codes, with a scale for each block."""
        elements = shape.numel()
        if not self._quantizes or group["bits"] != 8 or elements < LEAST_QUANTIZED:
            return {"exp_avg": (shape, self._first), "exp_avg_sq": (shape, torch.float32)}
        codes, scales = (shape, torch.uint8), (torch.Size([-(-elements // BLOCK)]), torch.float32)
        return {"exp_avg": codes, "exp_avg_scale": scales, "exp_avg_sq": codes, "exp_avg_sq_scale": scales}

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
        lr, decay, (beta1, beta2) = group["lr"], group["weight_decay"], group["betas"]
        weight, gradient = weight.view(-1), gradient.view(-1)
        if group["max_tensor_norm"] is not None:
            gradient.mul_(group["max_tensor_norm"] / norm.clamp(min=group["max_tensor_norm"]))
        if decay and self._decoupled:
            weight.mul_(1.0 - lr * decay)
        elif decay:
            gradient.add_(weight, alpha=decay)
        m, v = _load(states, "exp_avg", signed=True), _load(states, "exp_avg_sq", signed=False)
        m.lerp_(gradient, 1.0 - beta1)
        v.mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
        denominator = v.sqrt().div_((1.0 - beta2**step) ** 0.5).add_(group["eps"])
        weight.addcdiv_(m, denominator, value=-lr / (1.0 - beta1**step))
        _store(m, states, "exp_avg", signed=True)
        _store(v, states, "exp_avg_sq", signed=False)


def _load(states: Mapping[str, Tensor], name: str, signed: bool) -> Tensor:
    """A moment in float32, (n,): the stored one itself where it is float32."""
    stored = states[name].view(-1)
    if stored.dtype == torch.uint8:
        return dequantize(stored, states[f"{name}_scale"], signed)
    return stored.float()


def _store(moment: Tensor, states: Mapping[str, Tensor], name: str, signed: bool) -> None:
    stored = states[name].view(-1)
    if stored.dtype == torch.uint8:
        quantize(moment, stored, states[f"{name}_scale"], signed)
    elif stored.dtype != torch.float32:
        stored.copy_(moment)


class _AdamVariant(RuleOptimizer):
    """What the classes below have in common.

    Args:
        groups, loss_scaling, max_grad_norm: as RuleOptimizer.
        lr, betas, eps, weight_decay, max_tensor_norm: of groups that do not say otherwise.
    """

    def __init__(
        self,
        groups: Sequence[Mapping[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_tensor_norm: float | None = None,
        loss_scaling: float = 1.0,
        max_grad_norm: float | None = None,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "bits": 32}
        super().__init__(groups, {**defaults, "max_tensor_norm": max_tensor_norm}, loss_scaling, max_grad_norm)


class TensorClippedAdam(_AdamVariant):
    """Adam, weight decay added to the gradient, that clips each parameter's gradient by itself."""

    portable_update_rule = AdamRule(decoupled=False, first=torch.float16, quantizes=False)


class TensorClippedAdamW(_AdamVariant):
    """AdamW that clips each parameter's gradient by itself."""

    portable_update_rule = AdamRule(decoupled=True, first=torch.float16, quantizes=False)


class AdamW8bit(_AdamVariant):
    """AdamW; in groups with `bits` 8 the moments of parameters of 4,096 elements or more are kept in 8 bits."""

    portable_update_rule = AdamRule(decoupled=True, first=torch.float32, quantizes=True)
