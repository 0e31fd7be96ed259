"""Documents inside a sample, told apart by the token that ends each.

The end token belongs to the document that it ends. A sample may begin inside a document, whose first token there counts
as its first. Shapes: B samples, T positions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def document_numbers(input_ids: Tensor, end_id: int) -> Tensor:
    """How many documents have ended before each token: (B, T) ids -> (B, T) int32."""
    ends = (input_ids == end_id).int()
    return torch.cumsum(ends, dim=1, dtype=torch.int32) - ends


def positions_in_documents(documents: Tensor) -> Tensor:
    """The position of each token in its document, from 0: (B, T) document numbers -> (B, T) int64."""
    order = torch.arange(documents.shape[1], device=documents.device)
    earlier = order[:, None] > order  # (T, T)
    same = documents[:, :, None] == documents[:, None, :]  # (B, T, T)
    return (same & earlier).int().sum(dim=-1)
