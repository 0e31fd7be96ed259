"""poptorch.optim: torch's optimizers with PopTorch's further arguments (spec section 7).

An executor never calls step(): it reads the groups and attributes of these objects
(engine/updating/hyperparameters.py). They stay ordinary torch optimizers all the same, for use outside an executor and
with torch's LR schedulers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from . import notices
from .checks import require
from .engine.updating import update_rules
from .engine.updating.hyperparameters import DEFAULT_MAX_WEIGHT_NORM, max_weight_norm
from .engine.updating.optimizer_values import LAMBValues
from .optimizer_base import Optimizer, VariableAttributes, given

__all__ = ["LAMB", "SGD", "Adam", "AdamW", "Optimizer", "RMSprop", "VariableAttributes"]


class SGD(Optimizer, torch.optim.SGD):
    """torch.optim.SGD with PopTorch's arguments.

    Args:
        loss_scaling: factor on the loss before the backward pass, taken off the gradients again; 1.0.
        velocity_scaling: factor on the stored velocity, with use_combined_accum only; 1.0.
        use_combined_accum: one tensor for gradient accumulation and velocity, of the weight's type.
        accum_type, velocity_accum_type: torch.float16 or float32; with use_combined_accum the former has no effect and
            the latter is refused.
        max_grad_norm: bound on the norm of all (scaled) gradients; infinity.
    Raises:
        AssertionError: an accumulator type that is none, or a type of the velocity with use_combined_accum.
    """

    ipu_kind = "SGD"

    def __init__(
        self,
        params: Iterable,
        lr: float,
        momentum: float | None = None,
        dampening: float | None = None,
        weight_decay: float | None = None,
        nesterov: bool | None = None,
        maximize: bool | None = None,
        foreach: bool | None = None,
        differentiable: bool | None = None,
        loss_scaling: float | None = None,
        velocity_scaling: float | None = None,
        use_combined_accum: bool | None = None,
        accum_type: torch.dtype | None = None,
        velocity_accum_type: torch.dtype | None = None,
        max_grad_norm: float | None = None,
    ) -> None:
        numbers = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        switches = {"nesterov": nesterov, "maximize": maximize, "foreach": foreach, "differentiable": differentiable}
        torch.optim.SGD.__init__(self, params, **given(**numbers, **switches))
        numbers.update(loss_scaling=loss_scaling, velocity_scaling=velocity_scaling)
        dtypes = {"accum_type": accum_type, "velocity_accum_type": velocity_accum_type}
        self._configure(tuple(numbers), dtypes, numbers)
        self.use_combined_accum = bool(use_combined_accum)
        if self.use_combined_accum:
            require(
                velocity_accum_type is None,
                "velocity_accum_type is only for separate accumulators: leave it out with use_combined_accum",
            )
        elif velocity_scaling is not None:
            notices.logger.warning(
                "velocity_scaling of SGD is ignored without use_combined_accum: it is tied to loss_scaling there."
            )
        _default(self, "velocity_scaling", 1.0 if velocity_scaling is None else velocity_scaling)
        self.max_grad_norm = _max_grad_norm(max_grad_norm)


class Adam(Optimizer, torch.optim.Adam):
    """torch.optim.Adam (L2 weight decay) with PopTorch's arguments.

    Args:
        loss_scaling: factor on the loss before the backward pass, taken off the gradients again; 1.0.
        accum_type: type of gradient accumulators; float32, or that of the weights where they are half.
        first_order_momentum_accum_type, second_order_momentum_accum_type: types of the moments; float32.
        max_grad_norm: bound on the norm of all gradients; infinity.
    Raises:
        AssertionError: a type other than torch.float16 and float32.
        ValueError: amsgrad.
    """

    ipu_kind = "Adam"

    def __init__(
        self,
        params: Iterable,
        lr: float | None = None,
        betas: tuple[float, float] | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        amsgrad: bool | None = None,
        foreach: bool | None = None,
        maximize: bool | None = None,
        capturable: bool | None = None,
        differentiable: bool | None = None,
        fused: bool | None = None,
        loss_scaling: float | None = None,
        accum_type: torch.dtype | None = None,
        first_order_momentum_accum_type: torch.dtype | None = None,
        second_order_momentum_accum_type: torch.dtype | None = None,
        max_grad_norm: float | None = None,
    ) -> None:
        _refuse_amsgrad(amsgrad)
        numbers = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        switches = {"foreach": foreach, "maximize": maximize, "capturable": capturable}
        switches.update(differentiable=differentiable, fused=fused)
        torch.optim.Adam.__init__(self, params, **given(**numbers, **switches))
        numbers["loss_scaling"] = loss_scaling
        dtypes = _moment_types(accum_type, first_order_momentum_accum_type, second_order_momentum_accum_type)
        self._configure(tuple(numbers), dtypes, numbers)
        self.max_grad_norm = _max_grad_norm(max_grad_norm)


class AdamW(Optimizer, torch.optim.AdamW):
    """torch.optim.AdamW (decoupled weight decay) with PopTorch's arguments: those of Adam, and

    Args:
        bias_correction: accepted and kept, but without effect: the bias is always corrected, on an IPU too.
    """

    ipu_kind = "AdamW"

    def __init__(
        self,
        params: Iterable,
        lr: float | None = None,
        betas: tuple[float, float] | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        amsgrad: bool | None = None,
        maximize: bool | None = None,
        foreach: bool | None = None,
        capturable: bool | None = None,
        differentiable: bool | None = None,
        fused: bool | None = None,
        loss_scaling: float | None = None,
        bias_correction: bool | None = None,
        accum_type: torch.dtype | None = None,
        first_order_momentum_accum_type: torch.dtype | None = None,
        second_order_momentum_accum_type: torch.dtype | None = None,
        max_grad_norm: float | None = None,
    ) -> None:
        _refuse_amsgrad(amsgrad)
        numbers = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        switches = {"foreach": foreach, "maximize": maximize, "capturable": capturable}
        switches.update(differentiable=differentiable, fused=fused)
        torch.optim.AdamW.__init__(self, params, **given(**numbers, **switches))
        numbers["loss_scaling"] = loss_scaling
        dtypes = _moment_types(accum_type, first_order_momentum_accum_type, second_order_momentum_accum_type)
        self._configure(tuple(numbers), dtypes, numbers)
        self.bias_correction = True if bias_correction is None else bool(bias_correction)
        self.max_grad_norm = _max_grad_norm(max_grad_norm)


class RMSprop(Optimizer, torch.optim.RMSprop):
    """torch.optim.RMSprop with PopTorch's arguments: the types and loss_scaling of Adam, and

    Args:
        use_tf_variant: TensorFlow's form: eps inside the square root, the learning rate inside the momentum.
    """

    ipu_kind = "RMSprop"

    def __init__(
        self,
        params: Iterable,
        lr: float | None = None,
        alpha: float | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        momentum: float | None = None,
        centered: bool | None = None,
        foreach: bool | None = None,
        maximize: bool | None = None,
        differentiable: bool | None = None,
        loss_scaling: float | None = None,
        accum_type: torch.dtype | None = None,
        first_order_momentum_accum_type: torch.dtype | None = None,
        second_order_momentum_accum_type: torch.dtype | None = None,
        use_tf_variant: bool | None = None,
    ) -> None:
        numbers = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
        switches = {"centered": centered, "foreach": foreach, "maximize": maximize, "differentiable": differentiable}
        torch.optim.RMSprop.__init__(self, params, **given(**numbers, **switches))
        numbers["loss_scaling"] = loss_scaling
        dtypes = _moment_types(accum_type, first_order_momentum_accum_type, second_order_momentum_accum_type)
        self._configure(tuple(numbers), dtypes, numbers)
        self.use_tf_variant = bool(use_tf_variant)


class LAMB(Optimizer, torch.optim.Optimizer):
    """Layer-wise adaptive moments (You et al., Large Batch Optimization for Deep Learning, 2020).

    Args:
        lr, betas, eps, weight_decay: 1e-3, (0.9, 0.999), 1e-8, 1e-2; the decay is added to the update.
        bias_correction: correct the moments' bias; True.
        max_weight_norm: bound on the weight norm in the trust ratio; 65500. A group's 0 switches the ratio off.
        loss_scaling and the types: as in Adam.
    Raises:
        AssertionError: a type other than torch.float16 and float32.
        ValueError: a number outside its range.
    """

    ipu_kind = "LAMB"

    def __init__(
        self,
        params: Iterable,
        lr: float | None = None,
        betas: tuple[float, float] | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        bias_correction: bool | None = None,
        loss_scaling: float | None = None,
        max_weight_norm: float | None = None,
        accum_type: torch.dtype | None = None,
        first_order_momentum_accum_type: torch.dtype | None = None,
        second_order_momentum_accum_type: torch.dtype | None = None,
    ) -> None:
        numbers = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        numbers["max_weight_norm"] = max_weight_norm
        defaults = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}
        defaults["max_weight_norm"] = DEFAULT_MAX_WEIGHT_NORM
        defaults.update(given(**numbers))
        for name, value in defaults.items():
            for number in value if name == "betas" else (value,):
                if not number >= 0.0 or (name == "betas" and number >= 1.0):
                    raise ValueError(f"Invalid {name}: {value}")
        torch.optim.Optimizer.__init__(self, params, defaults)
        numbers["loss_scaling"] = loss_scaling
        dtypes = _moment_types(accum_type, first_order_momentum_accum_type, second_order_momentum_accum_type)
        self._configure(tuple(numbers), dtypes, numbers)
        self.bias_correction = True if bias_correction is None else bool(bias_correction)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of the host's parameters from their `.grad`. Returns the closure's loss, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            numbers = {name: float(group[name]) for name in ("lr", "eps", "weight_decay")}
            values = LAMBValues(
                beta1=beta1, beta2=beta2, max_weight_norm=max_weight_norm(group, self.defaults), **numbers
            )
            for param in group["params"]:
                if param.grad is not None:
                    self._update(param, values)
        return loss

    def _update(self, param: torch.Tensor, values: LAMBValues) -> None:
        state = self.state[param]
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(param), exp_avg_sq=torch.zeros_like(param))
        state["step"] += 1
        m, v = [state["exp_avg"]], [state["exp_avg_sq"]]
        update_rules.lamb_moments([param.grad], m, v, values, None)
        x = update_rules.lamb_direction([param], m, v, values, state["step"], self.bias_correction)
        norms = [torch.linalg.vector_norm(each).reshape(1) for each in (param, x[0])]
        trust = update_rules.lamb_trust(*norms, values.max_weight_norm)
        update_rules.lamb_apply([param], x, [trust[0]], values.lr)


def _moment_types(
    accum: torch.dtype | None, first: torch.dtype | None, second: torch.dtype | None
) -> dict[str, torch.dtype | None]:
    return {
        "accum_type": accum,
        "first_order_momentum_accum_type": first,
        "second_order_momentum_accum_type": second,
    }


def _default(optimizer: torch.optim.Optimizer, name: str, value: float) -> None:
    """Give groups that lack it an attribute that torch's constructor does not know."""
    optimizer.defaults[name] = value
    for group in optimizer.param_groups:
        group.setdefault(name, value)


def _max_grad_norm(value: float | None) -> float:
    value = math.inf if value is None else float(value)
    require(value > 0.0, f"max_grad_norm must be positive, not {value}")
    return value


def _refuse_amsgrad(amsgrad: bool | None) -> None:
    if amsgrad:
        raise ValueError("Only non-amsgrad Adam/AdamW optimizers are supported: leave amsgrad out.")
