"""The optimizers' formulas in float64, and the small models that the tests of the device's optimizers share."""

from __future__ import annotations

import math

import torch

from poptorch.engine.updating.optimizer import DeviceOptimizer

SHAPES = {"a": (5, 7), "b": (11,), "c": (3, 2, 2), "d": ()}


def parameters(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for name, shape in SHAPES.items()
    }


def gradients(step: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    return {name: (scale * torch.randn(shape, generator=generator)).to(dtype) for name, shape in SHAPES.items()}


def device_optimizer(optimizer, host, device=None, *, rounding=False, seed=0, apart=False):
    device = device or {name: param.detach().clone() for name, param in host.items()}
    made = DeviceOptimizer(
        optimizer,
        host,
        device,
        param_dtypes={name: param.dtype for name, param in host.items()},
        stochastic_rounding=rounding,
        generator=torch.Generator().manual_seed(seed),
        states_apart=apart,
    )
    return made, device


def in_two_groups(host, first: dict, second: dict) -> list[dict]:
    return [{"params": [host["a"], host["c"]], **first}, {"params": [host["b"], host["d"]], **second}]


class Reference:
    """The formulas of the specification, one parameter at a time, in float64."""

    def __init__(self, kind, weights, numbers, *, loss_scaling=1.0, max_grad_norm=math.inf, correct=True, tf=False):
        self.kind, self.loss_scaling, self.max_grad_norm = kind, loss_scaling, max_grad_norm
        self.correct, self.tf, self.t = correct, tf, 0
        self.w = {name: weight.detach().double().clone() for name, weight in weights.items()}
        self.numbers = numbers  # by parameter name
        self.memory = {name: [torch.zeros_like(weight) for _ in range(3)] for name, weight in self.w.items()}

    def step(self, grads):
        self.t += 1
        grads = {name: grad.double() for name, grad in grads.items()}
        if self.kind != "SGD":
            grads = {name: grad / self.loss_scaling for name, grad in grads.items()}
        norm = math.sqrt(sum(float((grad * grad).sum()) for grad in grads.values()))
        factor = self.max_grad_norm / max(norm, self.max_grad_norm) if math.isfinite(self.max_grad_norm) else 1.0
        for name, grad in grads.items():
            grad = grad * factor
            if self.kind == "SGD":
                grad = grad / self.loss_scaling
            getattr(self, self.kind)(name, grad, **self.numbers[name])

    def SGD(self, name, g, lr, momentum, dampening, weight_decay, nesterov):
        g = g + weight_decay * self.w[name]
        if momentum:
            self.memory[name][0] = momentum * self.memory[name][0] + (1 - dampening) * g
            g = g + momentum * self.memory[name][0] if nesterov else self.memory[name][0]
        self.w[name] = self.w[name] - lr * g

    def _moments(self, name, g, betas):
        self.memory[name][0] = betas[0] * self.memory[name][0] + (1 - betas[0]) * g
        self.memory[name][1] = betas[1] * self.memory[name][1] + (1 - betas[1]) * g**2
        m, v = self.memory[name][:2]
        return (m / (1 - betas[0] ** self.t), v / (1 - betas[1] ** self.t)) if self.correct else (m, v)

    def Adam(self, name, g, lr, betas, eps, weight_decay):
        m, v = self._moments(name, g + weight_decay * self.w[name], betas)
        self.w[name] = self.w[name] - lr * m / (v.sqrt() + eps)

    def AdamW(self, name, g, lr, betas, eps, weight_decay):
        m, v = self._moments(name, g, betas)
        self.w[name] = self.w[name] - lr * (m / (v.sqrt() + eps) + weight_decay * self.w[name])

    def LAMB(self, name, g, lr, betas, eps, weight_decay, max_weight_norm=None):
        m, v = self._moments(name, g, betas)
        x = m / (v.sqrt() + eps) + weight_decay * self.w[name]
        bound = 65500.0 if max_weight_norm is None else max_weight_norm
        r1, r2 = min(float(self.w[name].norm()), bound), float(x.norm())
        trust = 1.0 if r1 == 0 or r2 == 0 or bound == 0 else r1 / r2
        self.w[name] = self.w[name] - lr * trust * x

    def RMSprop(self, name, g, lr, alpha, eps, weight_decay, momentum, centered):
        memory = self.memory[name]
        g = g + weight_decay * self.w[name]
        memory[0] = alpha * memory[0] + (1 - alpha) * g**2
        variance = memory[0]
        if centered:
            memory[1] = alpha * memory[1] + (1 - alpha) * g
            variance = memory[0] - memory[1] ** 2
        x = g / (variance + eps).sqrt() if self.tf else g / (variance.sqrt() + eps)
        if momentum and self.tf:
            memory[2] = momentum * memory[2] + lr * x
            self.w[name] = self.w[name] - memory[2]
        else:
            memory[2] = momentum * memory[2] + x
            self.w[name] = self.w[name] - lr * memory[2]


def assert_close(device, reference, rtol=2e-5, atol=2e-6):
    for name, weight in device.items():
        torch.testing.assert_close(weight.double(), reference.w[name], rtol=rtol, atol=atol)
