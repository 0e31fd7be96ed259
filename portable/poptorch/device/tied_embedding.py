"""Lookup in a matrix that the head's loss multiplies, too: its gradient goes into the head's, in place.

torch makes the gradient of a lookup as large as the matrix, mostly of zeros, before it adds the two: for GPT-2 small's
vocabulary 154 MB that are filled, read and added. The head's is formed earlier in the same backward pass, and nobody
reads it before that of the lookup has come. In a pipeline over processes the two are of different passes: there the
lookup's is sparse, its rows alone, if who accumulates gradients takes that.

The head's gradient is as large as nothing else that comes and goes. Its memory goes back to where the next one is
formed: among the C library's free blocks smaller ones would cut it up, and the next gradient found no room. So does
that of what is kept in its place for few rows (linear_cross_entropy.py). Where one backward pass is all of an update
the accumulator is made there, too, and the memory goes back after the update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary


class SharedGradient:
    """A weight's gradient between the operation that forms it, one that adds to it, and who accumulates gradients.

    Attributes:
        takes_rows: whether who accumulates gradients takes sparse ones.
        accumulate: takes a gradient part by part, (first row, rows of it), and is done with a part when it asks for the
            next one; None where gradients come whole. Second argument: the memory() that parts are made from, if
            `accumulator_size` is not 0. It goes with it. From its beginning on as many bytes as the accumulator's rows
            take, up to the end of a part, may be overwritten once that part has come.
        accumulator_size: bytes of the accumulator where it is made in memory(), for each update anew; 0 if it has
            memory of its own.
    """

    def __init__(self) -> None:
        self.takes_rows = False
        self.accumulate: Callable[[Iterable[tuple[int, torch.Tensor]], torch.Tensor | None], None] | None = None
        self.accumulator_size = 0
        self._pass, self._offered = -1, None
        self._memory: torch.Tensor | None = None
        self._asked: tuple[torch.Size, torch.dtype] | None = None

    def offer(self, gradient: torch.Tensor) -> None:
        """It is complete but for what is added to it before this backward pass goes on to the weight.

        A weak reference: torch copies a gradient that somebody else holds, too.
        """
        self._pass, self._offered = torch._C._current_graph_task_id(), TensorWeakRef(gradient)

    def take(self) -> torch.Tensor | None:
        """What was offered, once; None if that was in another backward pass."""
        offered, self._offered = self._offered, None
        return offered() if offered is not None and self._pass == torch._C._current_graph_task_id() else None

    def give_back(self, gradient: torch.Tensor) -> None:
        """Nobody reads it any more, nor what was in memory(): there the next one may be formed.

        If it is what was asked for last: another one, which a further operation formed, would take its place in vain.
        """
        if (gradient.shape, gradient.dtype) == self._asked:
            self._memory = gradient

    def memory(self, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        """Room for a gradient, or for what it is made of, on a CPU, of undefined contents."""
        memory, self._memory, self._asked = self._memory, None, (shape, dtype)
        if memory is not None and (memory.shape, memory.dtype) == self._asked:
            return memory
        del memory  # before there is another
        return torch.empty(shape, dtype=dtype, device="cpu")

    def release(self) -> None:
        """Gradients are not accumulated any more."""
        self.takes_rows, self.accumulate, self.accumulator_size, self._memory = False, None, 0, None


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
        if shared is None and not ctx.shared.takes_rows:
            dense = torch.ops.aten.embedding_dense_backward
            return dense(grad, ids, ctx.rows, ctx.padding_idx, False), None, None
        rows, values = ids.reshape(-1), grad.reshape(-1, grad.shape[-1])
        if ctx.padding_idx >= 0:
            kept = rows != ctx.padding_idx
            rows, values = rows[kept], values[kept]
        if shared is None:
            shape = (ctx.rows, values.shape[-1])
            return torch.sparse_coo_tensor(rows.unsqueeze(0), values, shape, check_invariants=False), None, None
        shared.index_add_(0, rows, values)
        return None, None, None
