"""The optimizers' formulas (spec section 7), in place on lists of tensors that share their hyper-parameters.

Every list holds float32 tensors of one device, the i-th entries of one shape. Notation: w weight, g gradient, m and v
first and second moment, t the number of this step, from 1. Gradients may be overwritten. `divisor` is what the
gradients are still too large by (loss scaling, clipping), a 0-d float32 tensor on their device, or None.
"""

from __future__ import annotations

import torch

from .optimizer_values import AdamValues, LAMBValues, RMSpropValues, SGDValues

Tensors = list[torch.Tensor]


def sgd(
    params: Tensors, grads: Tensors, velocities: Tensors, values: SGDValues, scale: float, divisor: torch.Tensor | None
) -> None:
    """g += wd w;  u = momentum u + (1 - dampening) g;  w -= lr (g + momentum u with nesterov, else u).

    `velocities` hold scale * u and start at 0, so dampening counts from the first step on, as in PopART (torch leaves
    it out of the first). After `divisor` the gradients are still larger by `scale`. Without momentum `velocities` is
    empty, scale 1.
    """
    torch._fused_sgd_(
        params,
        grads,
        velocities,
        lr=values.lr / scale,
        weight_decay=values.weight_decay * scale,
        momentum=values.momentum,
        dampening=values.dampening,
        nesterov=values.nesterov,
        maximize=False,
        is_first_step=False,
        grad_scale=divisor,
    )


def adam(
    params: Tensors, grads: Tensors, m: Tensors, v: Tensors, values: AdamValues, t: int, divisor: torch.Tensor | None
) -> None:
    """Adam with bias correction; weight decay added to g (L2) or, if decoupled, to the update (AdamW).

    m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2;  w -= lr (m/(1-b1^t) / (sqrt(v/(1-b2^t)) + eps) [+ wd w]).
    Kingma & Ba 2015; Loshchilov & Hutter 2019. On a CPU the kernel in device/native/adam.py does the same.
    """
    rule = torch._fused_adamw_ if values.decoupled else torch._fused_adam_
    step = torch.full((), float(t), dtype=torch.float32, device=params[0].device)
    rule(
        params,
        grads,
        m,
        v,
        [],
        [step] * len(params),
        lr=values.lr,
        beta1=values.beta1,
        beta2=values.beta2,
        weight_decay=values.weight_decay,
        eps=values.eps,
        amsgrad=False,
        maximize=False,
        grad_scale=divisor,
    )


def rmsprop(
    params: Tensors,
    grads: Tensors,
    squares: Tensors,
    means: Tensors,
    momenta: Tensors,
    values: RMSpropValues,
    tf_variant: bool,
    divisor: torch.Tensor | None,
) -> None:
    """g += wd w;  s = alpha s + (1-alpha) g^2;  d = s, or s - mean(g)^2 if centered;  u = g / (sqrt(d) + eps).

    With momentum b = momentum b + u;  w -= lr b, otherwise w -= lr u. TensorFlow's variant has u = g / sqrt(d + eps)
    and the learning rate inside the momentum: b = momentum b + lr u;  w -= b. `means` is empty unless centered,
    `momenta` without momentum.
    """
    _divide(grads, divisor)
    if values.weight_decay:
        torch._foreach_add_(grads, params, alpha=values.weight_decay)
    torch._foreach_mul_(squares, values.alpha)
    torch._foreach_addcmul_(squares, grads, grads, value=1.0 - values.alpha)
    if values.centered:
        torch._foreach_lerp_(means, grads, 1.0 - values.alpha)
        denominators = torch._foreach_addcmul(squares, means, means, value=-1.0)
        torch._foreach_clamp_min_(denominators, 0.0)  # a variance; rounding may leave it just below 0
    else:
        denominators = [each.clone() for each in squares]
    if tf_variant:
        torch._foreach_add_(denominators, values.eps)
        torch._foreach_sqrt_(denominators)
    else:
        torch._foreach_sqrt_(denominators)
        torch._foreach_add_(denominators, values.eps)
    if not momenta:
        torch._foreach_addcdiv_(params, grads, denominators, value=-values.lr)
        return
    torch._foreach_mul_(momenta, values.momentum)
    torch._foreach_addcdiv_(momenta, grads, denominators, value=values.lr if tf_variant else 1.0)
    torch._foreach_add_(params, momenta, alpha=-1.0 if tf_variant else -values.lr)


def lamb_moments(grads: Tensors, m: Tensors, v: Tensors, values: LAMBValues, divisor: torch.Tensor | None) -> None:
    """m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2. Without `divisor` the gradients stay as they are."""
    _divide(grads, divisor)
    torch._foreach_lerp_(m, grads, 1.0 - values.beta1)
    torch._foreach_mul_(v, values.beta2)
    torch._foreach_addcmul_(v, grads, grads, value=1.0 - values.beta2)


def lamb_direction(
    params: Tensors, m: Tensors, v: Tensors, values: LAMBValues, t: int, bias_correction: bool
) -> Tensors:
    """x = m_hat / (sqrt(v_hat) + eps) + wd w, new tensors; without bias correction m_hat = m, v_hat = v."""
    correction1 = 1.0 - values.beta1**t if bias_correction else 1.0
    correction2 = 1.0 - values.beta2**t if bias_correction else 1.0
    denominators = torch._foreach_sqrt(v)
    torch._foreach_div_(denominators, correction2**0.5)
    torch._foreach_add_(denominators, values.eps)
    # m_hat / d = m / (correction1 d)
    torch._foreach_mul_(denominators, correction1)
    direction = torch._foreach_div(m, denominators)
    if values.weight_decay:
        torch._foreach_add_(direction, params, alpha=values.weight_decay)
    return direction


def lamb_trust(weight_norms: torch.Tensor, direction_norms: torch.Tensor, max_weight_norm: float) -> torch.Tensor:
    """Trust ratios (n,) from ||w|| and ||x|| (n,): min(||w||, max) / ||x||, or 1 where either of the two is 0."""
    weight_norms = weight_norms.clamp(max=max_weight_norm)
    plain = (weight_norms == 0) | (direction_norms == 0)
    return torch.where(plain, 1.0, weight_norms / direction_norms)


def lamb_apply(params: Tensors, direction: Tensors, trust: list[torch.Tensor], lr: float) -> None:
    """w -= lr trust x, with a 0-d trust ratio for each tensor. Overwrites `direction`. You et al. 2020."""
    torch._foreach_mul_(direction, trust)
    torch._foreach_add_(params, direction, alpha=-lr)


def _divide(grads: Tensors, divisor: torch.Tensor | None) -> None:
    if divisor is not None:
        torch._foreach_div_(grads, [divisor] * len(grads))
