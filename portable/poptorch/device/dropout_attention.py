"""Causal attention with dropout for the CPU, whose fused kernel has none.

One sample goes through at a time, so that its scores (H, T, T) stay in the caches while they become probabilities.
Kept for the backward pass is one float tensor instead of the three or four that the same operations leave behind one by
one: the probabilities, with a minus sign where they were dropped.
"""

from __future__ import annotations

import torch


def dropout_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float, scale: float
) -> torch.Tensor:
    """dropout(softmax(causal(query key^T scale))) value: (B, H, T, D) each -> (B, H, T, D).

    `dropout` is the probability of dropping, below 1; the random numbers are those of the CPU's generator.
    """
    return _DropoutAttention.apply(query, key, value, dropout, scale)


class _DropoutAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, dropout, scale):
        samples, heads, length, _ = query.shape
        future = torch.full((length, length), -torch.inf, dtype=query.dtype).triu_(1)
        signed = torch.empty(samples, heads, length, length, dtype=query.dtype)
        context = torch.empty(samples, length, heads, value.shape[-1], dtype=value.dtype).transpose(1, 2)
        for b in range(samples):
            scores = torch.matmul(query[b] * scale, key[b].transpose(-1, -2)).add_(future)
            probabilities = torch.softmax(scores, -1, out=signed[b])
            kept = scores.bernoulli_(1.0 - dropout).sub_(0.5)  # 0.5 or -0.5
            dropped = torch.clamp_min(probabilities.copysign_(kept), 0.0, out=scores)
            context[b] = torch.matmul(dropped, value[b])
        ctx.save_for_backward(query, key, value, signed)
        ctx.dropout, ctx.scale = dropout, scale
        return context.div_(1.0 - dropout)

    @staticmethod
    def backward(ctx, grad):
        query, key, value, signed = ctx.saved_tensors
        # in the layout of the operands, which may be views of one projection's output
        grads = [torch.empty_like(tensor) for tensor in (query, key, value)]
        for b in range(query.shape[0]):
            above = grad[b] / (1.0 - ctx.dropout)  # (H, T, D)
            scores = torch.clamp_min(signed[b], 0.0)  # (H, T, T)
            grads[2][b] = torch.matmul(scores.transpose(-1, -2), above)
            delta = torch.matmul(above, value[b].transpose(-1, -2))
            delta = torch.ops.aten.threshold_backward(delta, signed[b], 0)  # 0 where it was dropped
            torch._softmax_backward_data(delta, signed[b].abs(), -1, delta.dtype, grad_input=scores)
            grads[0][b] = torch.matmul(scores, key[b]).mul_(ctx.scale)
            grads[1][b] = torch.matmul(scores.transpose(-1, -2), query[b]).mul_(ctx.scale)
        return *grads, None, None
