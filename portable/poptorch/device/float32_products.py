"""Matrix products of float32 on a CPU by native/, where they are faster than those of torch's library.

MKL does not use AVX-512 on AMD's processors: on Zen 5 the kernels are twice as fast. Whether they are worth it is
measured once for the machine, as half_units.py does it for half.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import half_units, native
from .native import wide_products

WORTH_IT = 1.2  # times the speed of torch.mm
KERNELS, TORCH = "kernels", "torch"  # whose products they are
_FEWEST = 1 << 24  # multiplications of a product; below, the call and the threads' start take a good part of the time
_ROWS, _INNER, _COLUMNS = 256, 768, 768  # of the product that is timed


def are_large(rows: int, depth: int, columns: int) -> bool:
    """Whether a product of these sizes is worth the kernel's call."""
    return rows * depth * columns >= _FEWEST


def available() -> bool:
    """Whether the kernels have products of float32 for this CPU (AVX-512)."""
    return wide_products.available(torch.float32)


def choice() -> str:
    """Whose products programs should have here: KERNELS or TORCH."""
    return KERNELS if available() and speed() >= WORTH_IT else TORCH


def asked_by() -> str | None:
    """The setting that leaves the products to torch, if there is one: "POPTORCH_PORTABLE_KERNELS=none"."""
    return None if native.available() else native.asked_by()


@functools.cache
def speed() -> float:
    """How many times as fast as torch's the kernels' products are, with torch's threads. Needs available()."""
    return half_units.measured("float32 products", _stopwatch)


def _stopwatch() -> Callable[[], tuple[float, float]]:
    """What takes one sample: seconds of a product of torch's, and of the same one of the kernels'."""
    a, b = torch.ones(_ROWS, _INNER, dtype=torch.float32), torch.ones(_INNER, _COLUMNS, dtype=torch.float32)
    out = torch.empty(_ROWS, _COLUMNS, dtype=torch.float32)

    def seconds(product: Callable[[], Tensor]) -> float:
        start = time.perf_counter()
        product()
        return time.perf_counter() - start

    def sample() -> tuple[float, float]:
        torchs = seconds(lambda: torch.mm(a, b, out=out))
        return torchs, seconds(lambda: wide_products.multiply(a, b, out, dtype=torch.float32))

    sample()  # warms up
    return sample


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b: float32 (..., K), (N, K), (N,) or None -> (..., N)."""
    tensors = (tensor for tensor in (x, weight, bias) if tensor is not None)
    if any(map(torch._C._functorch.is_functorch_wrapped_tensor, tensors)):  # the kernels read memory
        return F.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias)


def matmul(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W + b: float32 (..., K), (K, N), (N,) or None -> (..., N)."""
    return linear(x, weight.t(), bias)


def _multiply(left: Tensor, right: Tensor) -> Tensor:
    out = torch.empty(left.shape[0], right.shape[1], dtype=torch.float32)
    return wide_products.multiply(left, right, out, dtype=torch.float32)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        out = _multiply(x.reshape(-1, x.shape[-1]), weight.t())
        if bias is not None:
            out += bias
        return out.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        rows, grad = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = _multiply(grad, weight).view(x.shape)
        if ctx.needs_input_grad[1]:  # it lies in memory as the weight does
            transposed = weight.stride(0) == 1
            grad_weight = _multiply(rows.t(), grad).t() if transposed else _multiply(grad.t(), rows)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(0)
        return grad_x, grad_weight, grad_bias
