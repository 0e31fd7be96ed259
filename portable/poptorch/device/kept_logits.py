"""The gradients of all logits of a fused loss, which wait for the backward pass (linear_cross_entropy.py)."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .loss_products import LossProducts
from .native import cross_entropy
from .tied_embedding import SharedGradient

_PART_ROWS = 1024  # at most, of a weight's gradient that is never held as a whole; more are not faster
_ALIGNMENT = 64  # bytes


class KeptLogits:
    """The gradients of all logits (N, V), in bfloat16, up to a factor for each row, from the forward pass on.

    They lie in parts of columns, which the backward pass reads in turn. What it has read is free: if the weight's
    accumulator is made there, from the beginning of the room on, its rows of some parts end before the columns of the
    next one begin. For that the room is at least as large as the accumulator, and the columns lie at its end.

    Attributes:
        block: room for the float32 logits of a block (n, V), in one piece of memory with them that is given back.
    """

    def __init__(self, rows: int, weight: torch.Tensor, block_rows: int, memory: SharedGradient):
        self._memory, vocabulary = memory, len(weight)
        parts, self._columns = _parts(vocabulary)
        block, before = 4 * block_rows * vocabulary, memory.accumulator_size - 2 * rows * vocabulary
        before = -(-max(block, before) // _ALIGNMENT) * _ALIGNMENT
        size = before + 2 * parts * rows * self._columns
        self._room: torch.Tensor | None = memory.memory(torch.Size([size]), torch.uint8)
        self._becomes_accumulator = memory.accumulator_size > 0
        self.block = self._room[:block].view(torch.float32).view(block_rows, vocabulary)
        self._logits = self._room[before:].view(torch.bfloat16).view(parts, rows, self._columns)
        self._factors = torch.empty(rows, dtype=torch.float32)

    def take(
        self,
        part: slice,
        logits: torch.Tensor,
        bias: torch.Tensor | None,
        index: torch.Tensor,
        best: torch.Tensor,
        row_scale: torch.Tensor,
    ) -> torch.Tensor:
        """The losses (n,) of the block; what its gradients are to be multiplied by is `row_scale` (n,)."""
        found, _, factors = cross_entropy.differentiate(logits, bias, index, best, True, self._logits[:, part])
        torch.mul(row_scale, factors, out=self._factors[part])
        return found

    def gradient(
        self, grad: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor, products: LossProducts, needed: bool
    ) -> torch.Tensor | None:
        """That of `rows` (N, C) if `needed`, for that of the loss or of each group's. The weight's is accumulated.

        Raises:
            RuntimeError: it was asked for before, and the weight's accumulator has taken the logits' place.
        """
        if self._room is None:
            raise RuntimeError("The gradient of a fused loss can be asked for once before an update.")
        row_grad = (self._factors.view(max(1, grad.numel()), -1) * grad.view(-1, 1)).view(-1, 1)
        inputs = rows * row_grad
        grad_rows = torch.empty_like(rows) if needed else None

        def parts() -> Iterator[tuple[int, torch.Tensor]]:
            room = torch.empty(min(self._columns, len(weight)), rows.shape[1], dtype=torch.float32)
            starts = range(0, len(weight), self._columns)
            for first, logits, factors in zip(starts, self._logits, weight.split(self._columns), strict=True):
                logits, part = logits[:, : len(factors)], room[: len(factors)]
                if grad_rows is not None:
                    products.addmm(grad_rows, logits, factors, int(first > 0))
                products.mm(logits.t(), inputs, part)
                yield first, part

        if self._becomes_accumulator:
            room, self._room = self._room, None
            self._memory.accumulate(parts(), room)
        else:
            self._memory.accumulate(parts(), None)
            self._memory.give_back(self._room)
        return None if grad_rows is None else grad_rows.mul_(row_grad)


def _parts(vocabulary: int) -> tuple[int, int]:
    """How many parts the logits' columns are in, and how many columns each has; the last one has some beyond them."""
    columns = -(-vocabulary // -(-vocabulary // _PART_ROWS))  # about the same for each
    columns = -(-columns // cross_entropy.PART_STEP) * cross_entropy.PART_STEP
    return -(-vocabulary // columns), columns
