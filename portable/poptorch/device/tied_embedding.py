"""Lookup in a matrix that has another, dense gradient as well, as that of a head tied to the embedding.

torch makes the gradient of a lookup as large as the matrix, mostly of zeros, before it adds the two: for GPT-2 small's
vocabulary 154 MB that are filled, read and added. Here it is a sparse tensor, whose rows go into the dense one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


def tied_embedding(weight: torch.Tensor, ids: torch.Tensor, padding_idx: int = -1) -> torch.Tensor:
    """F.embedding(ids, weight): (V, C) and (…) -> (…, C). No gradient goes to row `padding_idx`, unless that is -1."""
    return _TiedEmbedding.apply(weight, ids, padding_idx)


class _TiedEmbedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, ids, padding_idx):
        ctx.save_for_backward(ids)
        ctx.shape, ctx.padding_idx = weight.shape, padding_idx
        return F.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (ids,) = ctx.saved_tensors
        rows, values = ids.reshape(1, -1), grad.reshape(-1, grad.shape[-1])
        if ctx.padding_idx >= 0:
            kept = rows[0] != ctx.padding_idx
            rows, values = rows[:, kept], values[kept]
        return torch.sparse_coo_tensor(rows, values, ctx.shape, check_invariants=False), None, None
