"""Lookup in a matrix that the head's loss multiplies, too: its gradient goes into the head's, in place.

torch makes the gradient of a lookup as large as the matrix, mostly of zeros, before it adds the two: for GPT-2 small's
vocabulary 154 MB that are filled, read and added. The head's is formed earlier in the same backward pass, and nobody
reads it before that of the lookup has come.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary


class SharedGradient:
    """A weight's gradient between the operation that has formed it and one that adds to it."""

    def __init__(self) -> None:
        self._pass, self._tensor = -1, None

    def offer(self, gradient: torch.Tensor) -> None:
        """It is complete but for what is added to it before this backward pass goes on to the weight."""
        self._pass, self._tensor = torch._C._current_graph_task_id(), gradient

    def take(self) -> torch.Tensor | None:
        """What was offered, once; None if that was in another backward pass."""
        gradient, self._tensor = self._tensor, None
        return gradient if self._pass == torch._C._current_graph_task_id() else None


# Weight -> its shared gradient. An entry goes with its weight.
_SHARED: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def shared_gradient(weight: torch.Tensor) -> SharedGradient:
    """That of `weight`, for all operations that read it."""
    return _SHARED.setdefault(weight, SharedGradient())


def tied_embedding(weight: torch.Tensor, ids: torch.Tensor, padding_idx: int = -1) -> torch.Tensor:
    """F.embedding(ids, weight): (V, C) and (…) -> (…, C). No gradient goes to row `padding_idx`, unless that is -1."""
    return _TiedEmbedding.apply(weight, ids, padding_idx)


class _TiedEmbedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, ids, padding_idx):
        ctx.save_for_backward(ids)
        ctx.shared, ctx.rows, ctx.padding_idx = shared_gradient(weight), len(weight), padding_idx
        return F.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (ids,) = ctx.saved_tensors
        shared = ctx.shared.take()
        if shared is None:
            dense = torch.ops.aten.embedding_dense_backward
            return dense(grad, ids, ctx.rows, ctx.padding_idx, False), None, None
        rows, values = ids.reshape(-1), grad.reshape(-1, grad.shape[-1])
        if ctx.padding_idx >= 0:
            kept = rows != ctx.padding_idx
            rows, values = rows[kept], values[kept]
        shared.index_add_(0, rows, values)
        return None, None, None
