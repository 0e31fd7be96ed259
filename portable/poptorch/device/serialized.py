"""serializedMatMul: a matrix product in steps (spec section 11).

One operator keeps the program's wish visible in the graph, so that the loss pass (passes/fused_loss.py) can go on in
steps as well and never hold all logits. On its own the product is computed slice by slice into its place.
"""

from __future__ import annotations

import torch

_LIBRARY = torch.library.Library("poptorch_engine", "FRAGMENT")
_LIBRARY.define("serialized_matmul(Tensor lhs, Tensor rhs, str mode, int factor, bool keep_precision) -> Tensor")
OPERATOR = torch.ops.poptorch_engine.serialized_matmul.default


def matmul(lhs: torch.Tensor, rhs: torch.Tensor, mode: str, factor: int, keep_precision: bool) -> torch.Tensor:
    """`lhs` (..., M, K) or (K,) times `rhs` (..., K, N) in `factor` steps over the dimension that `mode` names."""
    if lhs.dim() == 1:
        return matmul(lhs.unsqueeze(0), rhs, mode, factor, keep_precision).squeeze(-2)
    return torch.ops.poptorch_engine.serialized_matmul(lhs, rhs, mode, factor, keep_precision)


def _in_steps(lhs: torch.Tensor, rhs: torch.Tensor, mode: str, factor: int, keep_precision: bool) -> torch.Tensor:
    shape = torch.broadcast_shapes(lhs.shape[:-2], rhs.shape[:-2]) + (lhs.shape[-2], rhs.shape[-1])
    if mode == "reducing_dim":
        partials = torch.float32 if keep_precision else lhs.dtype
        out = torch.zeros(shape, dtype=partials, device=lhs.device)
        for left, right in zip(lhs.chunk(factor, -1), rhs.chunk(factor, -2), strict=True):
            out += torch.matmul(left, right)
        return out.to(lhs.dtype)
    out = torch.empty(shape, dtype=lhs.dtype, device=lhs.device)
    if mode == "input_channels":
        for left, slot in zip(lhs.chunk(factor, -2), out.chunk(factor, -2), strict=True):
            slot.copy_(torch.matmul(left, rhs))
    else:
        for right, slot in zip(rhs.chunk(factor, -1), out.chunk(factor, -1), strict=True):
            slot.copy_(torch.matmul(lhs, right))
    return out


class _SerializedMatMul(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(lhs, rhs, mode, factor, keep_precision):
        return _in_steps(lhs, rhs, mode, factor, keep_precision)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx, grad):
        lhs, rhs = ctx.saved_tensors
        grad_lhs = grad_rhs = None
        if ctx.needs_input_grad[0]:
            grad_lhs = _sum_to(torch.matmul(grad, rhs.transpose(-1, -2)), lhs.shape)
        if ctx.needs_input_grad[1]:
            if rhs.dim() == 2:  # one product over all rows instead of one per batch element: (K, rows) x (rows, N)
                lhs, grad = lhs.reshape(-1, lhs.shape[-1]), grad.reshape(-1, grad.shape[-1])
            grad_rhs = _sum_to(torch.matmul(lhs.transpose(-1, -2), grad), rhs.shape)
        return grad_lhs, grad_rhs, None, None, None


def _sum_to(grad: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return grad.sum_to_size(shape) if grad.shape != shape else grad


def _autograd(lhs, rhs, mode, factor, keep_precision):
    return _SerializedMatMul.apply(lhs, rhs, mode, factor, keep_precision)


def _fake(lhs, rhs, mode, factor, keep_precision):
    return torch.matmul(lhs, rhs)


_LIBRARY.impl("serialized_matmul", _in_steps, "CompositeExplicitAutograd")
_LIBRARY.impl("serialized_matmul", _autograd, "Autograd")
torch.library.register_fake("poptorch_engine::serialized_matmul", _fake, lib=_LIBRARY)
