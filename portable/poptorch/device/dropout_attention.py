"""Causal attention for the CPU: with dropout, which torch's fused kernel does not have, and without, but faster.

The kernel of native/ keeps nothing of the size of the scores: the backward pass draws its mask again. Where it is not
built, or for other types than float32 and bfloat16, plain torch serves. Kept for the backward pass is then one float
tensor instead of the three or four that the same operations leave behind one by one: the probabilities, with a minus
sign where they were dropped. Everything else of the size of the scores lives for a few samples at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from . import native

# Scores worked on at a time. Smaller parts would stay in the caches, but make threads wait for each other more often.
_PART_BYTES = 16 << 20


def dropout_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout: float,
    scale: float,
    philox: bool = True,
    keys: Sequence[int] | None = None,
) -> torch.Tensor:
    """dropout(softmax(causal(query key^T scale))) value: (B, H, T, D) each -> (B, H, T, D).

    `dropout` is the probability of dropping, below 1; the random numbers, or the key that they follow from, are drawn
    from the CPU's generator. `philox`: take the kernel, where there is one for these tensors. `keys` are then drawn
    already, one for each of as many equal parts of the samples.
    """
    if philox and native.serves(query, key, value, narrow=True):
        keys = (native.new_key(),) if keys is None else tuple(keys)
        return NativeAttention.apply(query, key, value, dropout, scale, keys, None, None)
    return _DropoutAttention.apply(query, key, value, dropout, scale)


def causal_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None) -> torch.Tensor:
    """softmax(causal(query key^T scale)) value: (B, H, T, D) each -> (B, H, T, D); scale None: 1 / sqrt(D).

    What F.scaled_dot_product_attention gives, by the kernel of native/ for tensors that it takes.
    """
    if native.serves(query, key, value, narrow=True):
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        return NativeAttention.apply(query, key, value, 0.0, scale, (0,), None, None)
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)


class NativeAttention(torch.autograd.Function):
    """The kernel, for tensors that native.serves(); slopes of ALiBi and biases of keys (n, T) as it takes them."""

    @staticmethod
    def forward(ctx, query, key, value, dropout, scale, keys, slopes, bias):
        ctx.settings = scale, dropout, keys, slopes
        context, log_sums = native.attention_forward(query, key, value, *ctx.settings, bias)
        ctx.save_for_backward(query, key, value, context, log_sums, bias)
        return context

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        *saved, bias = ctx.saved_tensors
        grad_bias = saved[0].new_empty(saved[0].shape[:3], dtype=torch.float32) if ctx.needs_input_grad[7] else None
        grads = native.attention_backward(grad, *saved, *ctx.settings, bias, grad_bias)
        if grad_bias is not None:  # of each sample and head: one bias serves several
            grad_bias = grad_bias.view(len(bias), -1, bias.shape[-1]).sum(1)
        return *grads, None, None, None, None, grad_bias


class _DropoutAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, dropout, scale):
        samples, heads, length, _ = query.shape
        future = torch.full((length, length), -torch.inf, dtype=query.dtype).triu_(1)
        signed = torch.empty(samples, heads, length, length, dtype=query.dtype)
        context = torch.empty(samples, length, heads, value.shape[-1], dtype=value.dtype).transpose(1, 2)
        for part in _parts(signed):
            scores = torch.matmul(query[part] * scale, key[part].transpose(-1, -2)).add_(future)
            probabilities = torch.softmax(scores, -1, out=signed[part])
            kept = scores.bernoulli_(1.0 - dropout).sub_(0.5)  # 0.5 or -0.5
            dropped = torch.clamp_min(probabilities.copysign_(kept), 0.0, out=scores)
            context[part] = torch.matmul(dropped, value[part])
        ctx.save_for_backward(query, key, value, signed)
        ctx.dropout, ctx.scale = dropout, scale
        return context.div_(1.0 - dropout)

    @staticmethod
    def backward(ctx, grad):
        query, key, value, signed = ctx.saved_tensors
        # in the layout of the operands, which may be views of one projection's output
        grads = [torch.empty_like(tensor) for tensor in (query, key, value)]
        for part in _parts(signed):
            above = grad[part] / (1.0 - ctx.dropout)  # (n, H, T, D)
            scores = torch.clamp_min(signed[part], 0.0)  # (n, H, T, T)
            grads[2][part] = torch.matmul(scores.transpose(-1, -2), above)
            delta = torch.matmul(above, value[part].transpose(-1, -2))
            delta = torch.ops.aten.threshold_backward(delta, signed[part], 0)  # 0 where it was dropped
            torch._softmax_backward_data(delta, signed[part].abs(), -1, delta.dtype, grad_input=scores)
            grads[0][part] = torch.matmul(scores, key[part]).mul_(ctx.scale)
            grads[1][part] = torch.matmul(scores.transpose(-1, -2), query[part]).mul_(ctx.scale)
        return *grads, None, None


def _parts(scores: torch.Tensor) -> Iterator[slice]:
    """Samples of (B, H, T, T) that are worked on together."""
    size = max(1, _PART_BYTES // (scores[0].numel() * scores.element_size()))
    for start in range(0, scores.shape[0], size):
        yield slice(start, start + size)
