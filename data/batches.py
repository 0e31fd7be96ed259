"""How samples become the combined batch of one call: in one allocation, without a list of single samples."""

from __future__ import annotations

from typing import Tuple

import torch

Pair = Tuple[torch.Tensor, torch.Tensor]


def empty_batch(rows: int, max_len: int) -> Pair:
    """Uninitialised input ids and labels, both int32 (B, T); in shared memory if a loader process asks.

    A combined batch can be 65,536 x 1,024 ids twice, 537 MB: a loader process that first fills private memory would
    hold it a second time while handing it over.
    """
    pair = (torch.empty((rows, max_len), dtype=torch.int32), torch.empty((rows, max_len), dtype=torch.int32))
    if torch.utils.data.get_worker_info() is not None:
        for tensor in pair:
            tensor.share_memory_()
    return pair


def collate(batch: Pair | list[Pair]) -> Pair:
    """The `collate_fn` of the DataLoader: batches of `__getitems__` pass through, single samples are stacked."""
    if isinstance(batch, tuple):
        return batch
    inputs, labels = zip(*batch)
    return torch.stack(inputs), torch.stack(labels)
