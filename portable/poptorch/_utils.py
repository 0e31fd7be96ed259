"""Names of PopTorch's inside that libraries import: batches that a collate function made, joined into one.

poptorch_geometric's loaders collate each micro-batch by itself and combine the results.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from .poptorch_core import createPoptorchError
from .structure import Structure

__all__ = ["combine_batch_tensors_gen"]


def combine_batch_tensors_gen(batches: Sequence[Any]) -> Iterator[torch.Tensor]:
    """Yield each tensor of a batch, joined along dim 0 with those in its place in the others; 0-d ones give a vector.

    Args:
        batches: structures with tensors in the same places (see poptorch.structure), at least one.
    Raises poptorch.Error if they have different numbers of tensors, or tensors that do not fit together.
    """
    leaves = [Structure.of(batch)[0] for batch in batches]
    counts = sorted({len(tensors) for tensors in leaves})
    if len(counts) > 1:
        raise createPoptorchError(f"Batches to be combined must have equal numbers of tensors, got {counts}.")
    for position, parts in enumerate(zip(*leaves, strict=True)):
        try:
            yield torch.cat(parts) if parts[0].dim() else torch.stack(parts)
        except (RuntimeError, TypeError) as error:
            shapes = [tuple(part.shape) for part in parts]
            raise createPoptorchError(f"Tensor {position} of the batches cannot be joined: {shapes}.") from error
