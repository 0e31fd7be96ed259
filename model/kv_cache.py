"""A static key/value cache: what attention computed for earlier positions is kept, at the place of its position.

Rows of a batch may have different lengths: each key lies at its own position, whatever the others do, so that a row
never sees padding and its positions count from 0 on its own. Shapes as in gpt2.py, with S slots.
"""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor


class LayerCache:
    """Keys and values of one layer and the positions of the tokens at hand.

    Args:
        keys, values: (B, H, S, D), changed in place. The last slot is for padding: no token's position.
        positions: (B, T) int64, the slot of each token; S - 1 for padding.
        padding: (B, 1, 1, S), added to the scores of the slots (model/attention.py's padding_scores); None: nothing is.
    """

    def __init__(self, keys: Tensor, values: Tensor, positions: Tensor, padding: Tensor | None = None) -> None:
        self.keys, self.values, self.positions, self.padding = keys, values, positions, padding

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take (B, H, T, D) new keys and values; all of them, and (B, 1, T, S): which slots each token may see."""
        slots = self.positions[:, None, :, None].expand(keys.shape)
        self.keys.scatter_(2, slots, keys)
        self.values.scatter_(2, slots, values)
        every = torch.arange(self.keys.shape[2], device=keys.device)
        return self.keys, self.values, every <= self.positions[:, None, :, None]


def token_positions(start: Tensor, count: Tensor, width: int, slots: int) -> Tensor:
    """(B,) first positions and numbers of tokens -> (B, width) positions, slots - 1 where there is no token."""
    column = torch.arange(width, device=start.device)
    return torch.where(column < count[:, None], start[:, None] + column, slots - 1)


def layer_caches(
    keys: Sequence[Tensor], values: Sequence[Tensor], positions: Tensor, padding: Tensor | None = None
) -> list[LayerCache]:
    """One cache a layer for the tokens at `positions`."""
    return [LayerCache(k, v, positions, padding) for k, v in zip(keys, values)]
